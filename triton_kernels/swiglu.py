"""`swiglu`: one program for each 1,024 elements of a row.

The activations are computed as csrc/cpu/decode_kernels.inc does, which says why.

gate_up  (rows, 2 · INNER) float32
out      (rows, INNER) float32: written
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdecode.triton_kernels.case import Case
from fastdecode.triton_kernels.numerics import exp_f32

_BLOCK = tl.constexpr(1024)
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
_SILU, _GELU_TANH = tl.constexpr(0), tl.constexpr(1)

_TANH0 = tl.constexpr(float.fromhex("0x1.988454p+0"))
_TANH1 = tl.constexpr(float.fromhex("0x1.2444f2p-4"))

_T = tl.constexpr(float.fromhex("0x1.333334p-2"))
_P0 = tl.constexpr(float.fromhex("0x1.27a43cp-5"))
_P1 = tl.constexpr(float.fromhex("-0x1.457f7cp-3"))
_P2 = tl.constexpr(float.fromhex("0x1.acbe7ep-3"))
_P3 = tl.constexpr(float.fromhex("-0x1.ce72c8p-5"))
_P4 = tl.constexpr(float.fromhex("0x1.0a4ed4p-3"))
_P5 = tl.constexpr(float.fromhex("0x1.976886p-4"))
_P6 = tl.constexpr(float.fromhex("0x1.eee798p-4"))
_P7 = tl.constexpr(float.fromhex("0x1.e9fb6cp-4"))


@triton.jit
def _logistic(g, v):
    """g / (1 + e⁻ᵛ), where v has the sign of g."""
    e = exp_f32(-tl.abs(v))
    return tl.div_rn(tl.where(v < 0, g * e, g), 1.0 + e)


@triton.jit
def _gelu(g):
    a = tl.abs(g)
    t = tl.div_rn(tl.full(a.shape, 1.0, tl.float32), 1.0 + a * _T)
    p = t * _P0 + _P1
    p = p * t + _P2
    p = p * t + _P3
    p = p * t + _P4
    p = p * t + _P5
    p = p * t + _P6
    p = p * t + _P7
    above = p * t * exp_f32(a * -0.5 * a)
    return g * tl.where(g < 0, above, 1.0 - above)


@triton.jit
def activated(g, ACTIVATION: tl.constexpr):
    if ACTIVATION == _SILU:
        result = _logistic(g, g)
    elif ACTIVATION == _GELU_TANH:
        result = _logistic(g, g * ((g * g) * _TANH1 + _TANH0))
    else:
        result = _gelu(g)
    return result


@triton.jit
def swiglu(gate_up, out, ACTIVATION: tl.constexpr, INNER: tl.constexpr):
    blocks = tl.cdiv(INNER, _BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * _BLOCK + tl.arange(0, _BLOCK)
    gate = tl.load(gate_up + row * 2 * INNER + i, mask=i < INNER, other=0.0)
    up = tl.load(gate_up + row * 2 * INNER + INNER + i, mask=i < INNER, other=0.0)
    tl.store(out + row * INNER + i, activated(gate, ACTIVATION) * up, mask=i < INNER)


def launch_swiglu(gate_up: Tensor, activation: int) -> Tensor:
    """(rows, inner) float32. Shape and dtype must have been checked. ``activation``: fastdecode_activation."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=torch.float32, device=gate_up.device)
    if rows:
        with torch.cuda.device_of(gate_up):
            swiglu[(rows * triton.cdiv(inner, _BLOCK.value),)](gate_up, out, activation, inner, **_OPTIONS)
    return out


COMPILE_CASES = [
    Case(swiglu, {"gate_up": "*fp32", "out": "*fp32"}, {"ACTIVATION": activation, "INNER": 11008}, _OPTIONS)
    for activation in range(3)
]
