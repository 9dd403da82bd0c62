"""`fastdecode.generate` against transformers' own loop, on the embedded model: guided pictures.

    python benchmarks/bench_generate.py [--repeats 7] [--json FILE]

The rival is Chameleon with its image mask removed (benchmarks/rivals.py), transformers' ``generate``, its guidance
processor and its KV cache. Both draw from the same weights with the same prompts, scale, temperature and top-p, in
turns within one run; the median of the repeats is reported. Before anything is timed, both must draw pictures that
the recogniser of the model's world can read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastdecode
from benchmarks.rivals import draw_with_transformers, unmasked
from fastdecode.bench.machine import describe
from fastdecode.models.chameleon import Vocabulary
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


def measure(batch: int, repeats: int) -> dict[str, Any]:
    """The median seconds of both for ``batch`` pictures, and the figures computed from them."""
    model, processor = fastdecode.load("blocks")
    rival = unmasked(model)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
    inputs = dict(processor(text=prompts, padding=True, return_tensors="pt"))
    length = inputs["input_ids"].shape[1]
    tokens = batch * (Vocabulary.of(model).image_length + 2)

    def ours() -> Tensor:
        return fastdecode.generate(
            model, **inputs, multimodal_generation_mode="image-only", guidance_scale=SCALE, seed=1, **SAMPLING
        )

    def theirs() -> Tensor:
        torch.manual_seed(1)
        return draw_with_transformers(rival, inputs, SCALE, **SAMPLING)

    check(model, processor, ours(), length, "fastdecode")
    check(model, processor, theirs(), length, "transformers")
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "pictures at once": batch,
        "fastdecode ms per token": 1000 * mine * batch / tokens,
        "transformers ms per token": 1000 * other * batch / tokens,
        "fastdecode tokens/s": tokens / mine,
        "transformers tokens/s": tokens / other,
        "fastdecode s per batch": mine,
        "transformers s per batch": other,
        "ratio": other / mine,
        "ratios of the repeats": sorted(round(b / a, 2) for a, b in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    rows = [measure(batch, args.repeats) for batch in (1, 4, 16)]
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'pictures':>8} {'fastdecode':>22} {'transformers':>22} {'ratio':>7}")
    for row in rows:
        mine = f"{row['fastdecode s per batch']:.3f} s {row['fastdecode tokens/s']:6.0f} tok/s"
        other = f"{row['transformers s per batch']:.3f} s {row['transformers tokens/s']:6.0f} tok/s"
        print(f"{row['pictures at once']:>8} {mine:>22} {other:>22} {row['ratio']:6.2f}x")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "guided pictures": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
