"""`fastdecode.generate` against transformers' own loop, on the embedded model: guided pictures.

    python benchmarks/bench_generate.py [--repeats 7] [--json FILE]

The rival is Chameleon with its image mask removed (benchmarks/rivals.py), transformers' ``generate``, its guidance
processor and its KV cache. Both draw in float32 and in bfloat16, fastdecode also with weights of int8, with the same
prompts, scale, temperature and top-p, in turns within one run; the median of the repeats is reported. All rows of a
batch are compared with the faster of transformers' two. Before anything is timed, all must draw pictures that the
recogniser of the model's world can read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.rivals import draw_with_transformers, unmasked
from fastdecode.bench.machine import describe
from fastdecode.models.families import vocabulary_of
from tools.blocks.recogniser import recognise

PROMPTS = (
    "Draw: In column 2 a red circle.",
    "Draw: In column 1 a blue square, on it a yellow triangle.",
    "Draw: In column 3 a green diamond. In column 4 a purple square.",
    "Draw: In column 1 an orange circle, on it a white circle.",
)
SCALE = 2.0
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def check(model: Any, processor: Any, sequences: Tensor, length: int, who: str) -> None:
    """Check that every sequence is one whole picture that the recogniser can read."""
    documents = fastdecode.to_documents(model, processor, sequences, start=length)
    for i, document in enumerate(documents):
        if len(document) != 1 or isinstance(document[0], str) or recognise(document[0]) is None:
            raise SystemExit(f"{who} drew nothing that can be read for prompt {i}: {document}; not timing it")


WIDTHS: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"weights": "int8"}}


def measure(batch: int, repeats: int) -> list[dict[str, Any]]:
    """For each of `WIDTHS` the median seconds for ``batch`` pictures, and the figures computed from them."""
    runs: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for width, options in WIDTHS.items():
        model, processor = fastdecode.load("blocks", **options)
        inputs = dict(
            processor(text=[PROMPTS[i % len(PROMPTS)] for i in range(batch)], padding=True, return_tensors="pt")
        )
        mine = {"fastdecode": partial(draw, model, inputs)}
        if width != "int8":
            mine["transformers"] = partial(draw_as_transformers, unmasked(model), inputs)
        for who, run in mine.items():
            check(model, processor, run(), inputs["input_ids"].shape[1], f"{who} in {width}")
            runs[who, width] = run
    tokens = batch * (vocabulary_of(model).image_length + 2)
    times = [{key: seconds(run) for key, run in runs.items()} for _ in range(repeats)]
    medians = {key: statistics.median(turn[key] for turn in times) for key in runs}
    rival = min((key for key in runs if key[0] == "transformers"), key=medians.__getitem__)
    rows = []
    for width in WIDTHS:
        ours, other = medians["fastdecode", width], medians[rival]
        rows.append(
            {
                "pictures at once": batch,
                "weights": width,
                "rival weights": rival[1],
                "fastdecode ms per token": 1000 * ours * batch / tokens,
                "transformers ms per token": 1000 * other * batch / tokens,
                "fastdecode tokens/s": tokens / ours,
                "transformers tokens/s": tokens / other,
                "fastdecode s per batch": ours,
                "transformers s per batch": other,
                "ratio": other / ours,
                "ratios of the repeats": sorted(round(turn[rival] / turn["fastdecode", width], 2) for turn in times),
            }
        )
    return rows


def draw(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return fastdecode.generate(
        model, **inputs, multimodal_generation_mode="image-only", guidance_scale=SCALE, seed=1, **SAMPLING
    )


def draw_as_transformers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(1)
    return draw_with_transformers(model, inputs, SCALE, **SAMPLING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    rows = [row for batch in (1, 4, 16) for row in measure(batch, args.repeats)]
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'pictures':>8} {'weights':>9} {'fastdecode':>22} {'transformers, the faster width':>31} {'ratio':>7}")
    for row in rows:
        mine = f"{row['fastdecode s per batch']:.3f} s {row['fastdecode tokens/s']:6.0f} tok/s"
        other = f"{row['transformers s per batch']:.3f} s {row['transformers tokens/s']:6.0f} tok/s"
        print(f"{row['pictures at once']:>8} {row['weights']:>9} {mine:>22} {other:>31} {row['ratio']:6.2f}x")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "guided pictures": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
