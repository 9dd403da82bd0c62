"""`swiglu`: one program for each 1,024 elements of a row.

gate_up  (rows, 2 · INNER) float32
out      (rows, INNER) float32: written
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import exp_f32

_BLOCK = tl.constexpr(1024)
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def swiglu(gate_up, out, INNER: tl.constexpr):
    blocks = tl.cdiv(INNER, _BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * _BLOCK + tl.arange(0, _BLOCK)
    gate = tl.load(gate_up + row * 2 * INNER + i, mask=i < INNER, other=0.0)
    up = tl.load(gate_up + row * 2 * INNER + INNER + i, mask=i < INNER, other=0.0)
    e = exp_f32(-tl.abs(gate))
    silu = tl.div_rn(tl.where(gate < 0, gate * e, gate), 1.0 + e)
    tl.store(out + row * INNER + i, silu * up, mask=i < INNER)


def launch_swiglu(gate_up: Tensor) -> Tensor:
    """(rows, inner) float32. Shape and dtype must have been checked."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=torch.float32, device=gate_up.device)
    if rows:
        with torch.cuda.device_of(gate_up):
            swiglu[(rows * triton.cdiv(inner, _BLOCK.value),)](gate_up, out, inner, **_OPTIONS)
    return out


COMPILE_CASES = [Case(swiglu, {"gate_up": "*fp32", "out": "*fp32"}, {"INNER": 11008}, _OPTIONS)]
