"""Products alone of few rows with the matrices of a model: ours with weights of 16, 8 and 4 bits, and torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models import Size
from fastdecode import ops
from fastdecode.bench.step_cases import COLD_BYTES
from fastdecode.bench.turns import take_turns

GROUP = 32
"""Weights that share a scale in torch's int4, as in Q4_0 and in ours."""
LARGEST_ERROR = {"bf16": 0.01, "int8": 0.05, "int4": 0.2, "torch bf16": 0.01, "torch int4": 0.2}
"""Of a product, relative to its spread."""


def shapes(size: Size) -> dict[str, tuple[int, int]]:
    """Features and width of a model's matrices, those joined that a step multiplies together."""
    kv = size.hidden * (size.kv_heads or size.heads) // size.heads
    return {
        "qkv": (size.hidden + 2 * kv, size.hidden),
        "gate_up": (2 * size.mlp, size.hidden),
        "down": (size.hidden, size.mlp),
        "head": (size.vocab, size.hidden),
    }


def torch_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A bfloat16 (features, k) matrix for `_weight_int4pack_mm_for_cpu`: values of 4 bits packed, scales and zeros."""
    features, k = weight.shape
    grouped = weight.float().view(features, k // GROUP, GROUP)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).clamp_min(1e-8)
    values = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(features, k)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    # A weight is (value - 8) * scale + zero.
    both = torch.stack((scale, low + 8 * scale), -1).to(torch.bfloat16).transpose(0, 1).contiguous()
    return packed, both


def _cold(matrix: Any, size: int) -> Any:
    """Copies of ``matrix``, of ``size`` bytes, one after another; together they are larger than the caches,
    but for matrices of tests."""
    return cycle([matrix, *(copy.deepcopy(matrix) for _ in range(min(COLD_BYTES // size, 1000)))])


def products(x: Tensor, weight: Tensor) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Functions that multiply ``x`` (rows, k) float32 with the bfloat16 ``weight`` (features, k), and the bytes of the
    weights that each reads.
    """
    rounded, count = x.to(torch.bfloat16), weight.numel()
    plain = _cold(weight, weight.nbytes)
    small = _cold(torch_int4(weight), count // 2 + count // GROUP * 4)
    found: dict[str, tuple[Callable[[], Tensor], int]] = {
        "bf16": (lambda: ops.linear(x, next(plain)), weight.nbytes),
        "torch bf16": (lambda: F.linear(rounded, next(plain)), weight.nbytes),
        "torch int4": (
            lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(rounded, *_with_group(next(small))),
            count // 2 + count // GROUP * 4,
        ),
    }
    for kind, size in (("int8", count + 4 * len(weight)), ("int4", count // 2 + count // GROUP * 2)):
        matrices = _cold(ops.quantise(weight, kind).panels(), size)
        found[kind] = (lambda matrices=matrices: ops.linear(x, next(matrices)), size)
    return found


def _with_group(matrix: tuple[Tensor, Tensor]) -> tuple[Tensor, int, Tensor]:
    return matrix[0], GROUP, matrix[1]


@torch.inference_mode()
def measure_products(size: Size, row_counts: Sequence[int], seconds: float = 0.3) -> list[dict[str, Any]]:
    """A row for each matrix and number of rows: microseconds of all `products`, in turns, and the bytes they read.
    ``RuntimeError`` if a product is not what float32 gives, before it is timed.
    """
    found = []
    generator = torch.Generator().manual_seed(0)
    for name, (features, k) in shapes(size).items():
        weight = (torch.randn(features, k, generator=generator) / k**0.5).to(torch.bfloat16)
        for rows in row_counts:
            x = torch.randn(rows, k, generator=generator)
            runs, expected = products(x, weight), x @ weight.float().T
            for kind, (run, _) in runs.items():
                error = float((run().float() - expected).square().mean().sqrt() / expected.std())
                if not error <= LARGEST_ERROR[kind]:
                    raise RuntimeError(
                        f"{kind}: the product {name} of {rows} rows is wrong by {error:.3f} of its spread"
                    )
            times, _ = take_turns({kind: run for kind, (run, _) in runs.items()}, seconds)
            what = {"matrix": name, "features": features, "k": k, "rows": rows}
            found.append({**what, "us": times, "bytes": {kind: read for kind, (_, read) in runs.items()}})
    return found


def product_table(rows: Sequence[dict[str, Any]]) -> str:
    """Microseconds, and GB/s of weights."""
    kinds = list(rows[0]["us"])
    lines = [f"{'matrix':>8} {'rows':>4} " + " ".join(f"{kind + ' µs, GB/s':>20}" for kind in kinds)]
    for row in rows:
        cells = (f"{row['us'][kind]:>13.1f} {row['bytes'][kind] / row['us'][kind] / 1000:>6.1f}" for kind in kinds)
        lines.append(f"{row['matrix']:>8} {row['rows']:>4} " + " ".join(cells))
    return "\n".join(lines)
