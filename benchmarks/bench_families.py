"""`fastdecode.generate` against the loops that people run for Janus, Emu3 and Liquid: guided pictures, random weights.

    python benchmarks/bench_families.py [--models janus emu3 liquid] [--turns 3 3] [--side 8] [--json FILE]

The layers have the real sizes, all of Janus-Pro-1B's and two of Emu3's and Liquid's, in bfloat16; the pictures are
smaller than the real ones (``--side``), so that prompts take a larger part of the time. Rivals: for Janus its own
``generate(generation_mode="image")`` in transformers; for Emu3 transformers' ``generate`` with the guidance and the
grammar of Emu3's model card; for Liquid a loop over the model's forward as Liquid's own code has it, both streams in
one batch. All take turns in one run. Before anything is timed, greedy tokens must be the same in float32 with two small
layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.family_models import Shape, emu3_model, janus_model, liquid_model
from benchmarks.family_rivals import draw_emu3, draw_janus, draw_liquid
from fastdecode.bench.machine import describe
from fastdecode.models.families import vocabulary_of

PROMPT = 24
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Case:
    """``ours`` and ``theirs``: image tokens (batch, n) of prompts (batch, length). Their last arguments: whether tokens
    are sampled, and the side of a picture. ``layers``: on a CPU; None: all.
    """

    name: str
    rival: str
    layers: int | None
    make: Callable[[Shape], Any]
    ours: Callable[[Any, Tensor, bool, int], Tensor]
    theirs: Callable[[Any, Tensor, bool, int], Tensor]


def _janus(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    found: Tensor = fastdecode.generate(
        model, ids, attention_mask=torch.ones_like(ids), generation_mode="image", guidance_scale=5.0, do_sample=sample
    )
    return found


def _emu3(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    negative = ids.flip(1)[:, -8:].clone()
    negative[:, -1] = ids[:, -1]
    options = {"guidance_scale": 3.0, "negative_prompt_ids": negative, "do_sample": sample, "image": {"top_k": 2048}}
    options = options if sample else {**options, "image": {}}
    sizes = torch.tensor([[side, side]] * len(ids))
    found: Tensor = fastdecode.generate(
        model, ids, image_sizes=sizes, multimodal_generation_mode="image-only", **options
    )
    return found[:, ids.shape[1] :]


def _liquid(model: Any, ids: Tensor, sample: bool, side: int) -> Tensor:
    image = {"temperature": 0.99, "top_k": 4096, "top_p": 0.96} if sample else {}
    found: Tensor = fastdecode.generate(
        model, ids, multimodal_generation_mode="image-only", guidance=7.0, do_sample=sample, image=image
    )
    return found[:, ids.shape[1] : ids.shape[1] + side * side]


CASES = {
    "janus": Case("Janus-Pro-1B", "transformers' generate for Janus", None, janus_model, _janus, draw_janus),
    "emu3": Case("Emu3", "transformers' generate, model card's grammar", 2, emu3_model, _emu3, draw_emu3),
    "liquid": Case("Liquid", "a loop over the model's forward", 2, liquid_model, _liquid, draw_liquid),
}


def prompts(model: Any, count: int) -> Tensor:
    """(count, PROMPT) random words that end in the begin of a picture."""
    vocabulary = vocabulary_of(model)
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(400, 900, (count, PROMPT), generator=generator)
    ids[:, 0], ids[:, -1] = vocabulary.bos, vocabulary.begin_image
    return ids.to(model.device)


def check(case: Case, device: str) -> str | None:
    """SystemExit unless both draw the same greedy tokens with small layers in float32. Returns why the rival does not
    run in this version of transformers; None if it does.
    """
    model = case.make(Shape(small=True, device=device))
    ids = prompts(model, 2)
    ours = case.ours(model, ids, False, 8)
    try:
        theirs = case.theirs(model, ids, False, 8)
    except TypeError as error:  # transformers 5.17 calls a function of its own with too few arguments
        return f"{type(error).__name__}: {error}"
    if not torch.equal(ours[:, : theirs.shape[1]], theirs[:, : ours.shape[1]]):
        raise SystemExit(f"{case.name}: other greedy tokens than {case.rival}; not timing it")
    return None


def measure(case: Case, shape: Shape, turns: Sequence[int]) -> list[dict[str, Any]]:
    """``turns``: with one picture, and with several at once."""
    broken = check(case, shape.device)
    model = case.make(shape)
    rows = []
    for count, wanted in zip((1, 8), turns, strict=True):
        ids = prompts(model, count)
        runs = {"ours": case.ours} if broken else {"ours": case.ours, "theirs": case.theirs}
        times: list[dict[str, float]] = []
        for _ in range(wanted + (count == 1)):
            turn = {}
            for who, run in runs.items():
                start = time.perf_counter()
                run(model, ids, True, shape.side).tolist()  # the host waits for the tokens
                turn[who] = time.perf_counter() - start
            times.append(turn)
            told = ", ".join(f"{who} {seconds:.1f} s" for who, seconds in turn.items())
            print(f"{case.name}, {count} pictures: {told}", file=sys.stderr, flush=True)
        times = times[-wanted:]  # the very first warms up
        medians = {who: statistics.median(turn[who] for turn in times) for who in runs}
        tokens = count * shape.side**2
        row: dict[str, Any] = {
            "model": case.name,
            "layers": "all" if shape.layers is None else shape.layers,
            "image tokens": shape.side**2,
            "rival": case.rival,
            "pictures at once": count,
            "fastdecode ms per token": 1000 * medians["ours"] / tokens,
        }
        shown = f"{case.name:>14} {count:>3} pictures: {row['fastdecode ms per token']:8.3f} ms per token"
        if broken:
            row["rival does not run"] = broken
        else:
            row["rival ms per token"] = 1000 * medians["theirs"] / tokens
            row["ratio"] = medians["theirs"] / medians["ours"]
            row["ratios of the turns"] = sorted(round(turn["theirs"] / turn["ours"], 2) for turn in times)
            shown += f", rival {row['rival ms per token']:8.3f}: {row['ratio']:.2f} times as fast"
        rows.append(row)
        print(shown, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--turns", type=int, nargs=2, default=[3, 3], help="with one picture, and with eight (default: 3 3)"
    )
    parser.add_argument("--side", type=int, default=8, help="rows and columns of a picture (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="of Emu3 and Liquid (default: 2 on a CPU, else all)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe()
    if device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows = []
    for name in args.models:
        case = CASES[name]
        layers = case.layers if device == "cpu" and args.layers is None else args.layers
        shape = Shape(args.side, None if case.layers is None else layers, device=device)
        rows += measure(case, shape, args.turns)
        if args.json:  # after each model: it takes minutes
            args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
