"""`swiglu`: one program for each 1,024 elements of a row.

gate_up  (rows, 2 · INNER) float32
out      (rows, INNER) float32: written
parts    the parts of out, see parts.py: written where GROUP is not 0
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import exp_f32
from fastdecode.triton_kernels.parts import FEW, NO_PARTS, Parts, padded_length, store_parts

_BLOCK = tl.constexpr(1024)
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def swiglu(
    gate_up, out, parts, INNER: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, PAIRS: tl.constexpr
):  # fmt: skip
    blocks = tl.cdiv(INNER, _BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * _BLOCK + tl.arange(0, _BLOCK)
    gate = tl.load(gate_up + row * 2 * INNER + i, mask=i < INNER, other=0.0)
    up = tl.load(gate_up + row * 2 * INNER + INNER + i, mask=i < INNER, other=0.0)
    e = exp_f32(-tl.abs(gate))
    silu = tl.div_rn(tl.where(gate < 0, gate * e, gate), 1.0 + e)
    tl.store(out + row * INNER + i, silu * up, mask=i < INNER)
    if GROUP:
        value = tl.where(i < INNER, silu * up, 0.0)
        store_parts(parts, tl.program_id(0) // blocks, i, value, i < PADDED, PADDED, GROUP, PAIRS)


def launch_swiglu(gate_up: Tensor, parts: Parts | None = None) -> Tensor:
    """(rows, inner) float32. Shape and dtype must have been checked. ``parts``: of the result; they are written too."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=torch.float32, device=gate_up.device)
    if rows:
        with torch.cuda.device_of(gate_up):
            written = (out, *NO_PARTS) if parts is None else (parts.data, *parts.constants)
            grid = rows * triton.cdiv(inner, _BLOCK.value)
            swiglu[(grid,)](gate_up, out, written[0], inner, *written[1:], **_OPTIONS)
    return out


def _case(type: str, padded: int, group: int, pairs: bool) -> Case:
    types = {"gate_up": "*fp32", "out": "*fp32", "parts": type}
    return Case(swiglu, types, {"INNER": 11008, "PADDED": padded, "GROUP": group, "PAIRS": pairs}, _OPTIONS)


COMPILE_CASES = [
    _case("*fp32", *NO_PARTS),
    _case("*bf16", padded_length(11008), FEW, False),
    _case("*bf16", padded_length(11008), FEW, True),
]
