"""The arithmetic of `sample` in torch: exp, log, Philox, Gumbel noise.

All functions are elementwise, take and return tensors of one shape, and give the same bits on every
device. `csrc/core/numerics.h` and `csrc/core/philox.h` do the same in C++. Each multiplication and each
addition is a torch call of its own, so that no product and sum are rounded together. Constants are
hexadecimal because every bit of them matters: another bit could give another token.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASS_ONE = 1 << 40
"""Integer mass of probability 1. The masses of up to 2²² tokens add up without overflow."""

_LOG2_E = float.fromhex("0x1.715476p+0")
_LN2_HI = float.fromhex("0x1.63p-1")
_LN2_LO = float.fromhex("-0x1.bd0106p-13")
_SQRT_HALF = float.fromhex("0x1.6a09e6p-1")
_SQRT_HALF_BITS = 0x3F3504F3
_ROUND_SMALL = float.fromhex("0x1.8p+23")
_EXP_MIN = -86.0
_EXP_POLYNOMIAL = [
    float.fromhex(c)
    for c in (
        "0x1.a0d2cep-13",
        "0x1.6e879cp-10",
        "0x1.11121p-7",
        "0x1.555382p-5",
        "0x1.555554p-3",
        "0x1p-1",
    )
]
_LOG_POLYNOMIAL = [
    float.fromhex(c)
    for c in (
        "0x1.204376p-4",
        "-0x1.d7a37p-4",
        "0x1.de4a34p-4",
        "-0x1.fcba9ep-4",
        "0x1.23d37ep-3",
        "-0x1.555cap-3",
        "0x1.999d58p-3",
        "-0x1.fffff8p-3",
        "0x1.555554p-2",
    )
]
_LOW_32 = 0xFFFFFFFF


def _horner(x: Tensor, coefficients: list[float]) -> Tensor:
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x
        p = p + c
    return p


def exp_f32(x: Tensor) -> Tensor:
    """eˣ for float32 x ≤ 0, within 1 ulp; exactly 1 at 0; 0 below −86, so that no result is subnormal."""
    c = x.clamp_min(_EXP_MIN)
    n = (c * _LOG2_E + _ROUND_SMALL) - _ROUND_SMALL
    r = c - n * _LN2_HI
    r = r - n * _LN2_LO
    p = _horner(r, _EXP_POLYNOMIAL)
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    scale = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x < _EXP_MIN, 0.0, p * scale)


def _log_reduced(f: Tensor, e: Tensor) -> Tensor:
    """log((1 + f)·2ᵉ) for 1 + f in [√½, √2] and integral e, both float32."""
    s = f * f
    p = _horner(f, _LOG_POLYNOMIAL)
    p = p * (f * s)
    p = p + e * _LN2_LO
    p = p - s * 0.5
    p = f + p
    return p + e * _LN2_HI


def _reduce_log(x: Tensor) -> tuple[Tensor, Tensor]:
    """(f, e), x = (1 + f)·2ᵉ with 1 + f in [√½, √2), for positive normal float32 x."""
    shifted = x.contiguous().view(torch.int32) - _SQRT_HALF_BITS
    m = ((shifted & 0x007FFFFF) + _SQRT_HALF_BITS).view(torch.float32)
    return m - 1.0, (shifted >> 23).to(torch.float32)


def log_f32(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float32, within 2 ulp."""
    return _log_reduced(*_reduce_log(x))


def mass_of(p: Tensor) -> Tensor:
    """int64 round(p·2⁴⁰), ties to even, for float32 p in [0, 1]: sums exactly in any order."""
    return torch.round(p * float(MASS_ONE)).to(torch.int64)


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC'11) on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = ((p1 >> 32) & _LOW_32) ^ c1 ^ k0
        c1 = p1 & _LOW_32
        c2 = ((p0 >> 32) & _LOW_32) ^ c3 ^ k1
        c3 = p0 & _LOW_32
        k0 = (k0 + 0x9E3779B9) & _LOW_32
        k1 = (k1 + 0xBB67AE85) & _LOW_32
    return c0, c1, c2, c3


def gumbel_of(word0: Tensor, word1: Tensor) -> Tensor:
    """Gumbel noise, float32, from the first two words of a Philox block.

    The words make a uniform u in (0, 1). Bit 31 of word 0 says whether u is above ½. The distance of u
    from the nearer end, 0 or 1, is v = hi·2⁻³² + lo·2⁻⁶³ in [2⁻⁶³, ½]; hi and lo have 31 bits, lo is odd.
    Then E = −log u, which is −log1p(−v) above ½, and g = −log E. Both tails are resolved to 2⁻⁶², and g
    lies within (−3.8, 43.7).
    """
    hi = (word0 & 0x7FFFFFFF).to(torch.float32)
    lo = (word1 >> 1 | 1).to(torch.float32)
    v = hi * 2.0**-32 + lo * 2.0**-63
    f, e = _reduce_log(v)
    w = 1.0 - v
    halve = w < _SQRT_HALF
    upper = word0 > 0x7FFFFFFF
    f = torch.where(upper, torch.where(halve, (w + w) - 1.0, -v), f)
    e = torch.where(upper, -halve.to(torch.float32), e)
    return -log_f32(-_log_reduced(f, e))


def gumbel_noise(seed: Tensor, step: Tensor, ids: Tensor) -> Tensor:
    """float32 g(seed, step, token) for int64 tensors that broadcast together.

    The Philox key is (seed low, seed high), the counter (token, 0, step low, step high), 32 bits each.
    """
    seed, step, ids = torch.broadcast_tensors(seed, step, ids)
    counter = (ids, torch.zeros_like(ids), step & _LOW_32, (step >> 32) & _LOW_32)
    words = philox4x32_10(counter, (seed & _LOW_32, (seed >> 32) & _LOW_32))
    return gumbel_of(words[0], words[1])
