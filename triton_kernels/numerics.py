"""The arithmetic of `sample` in Triton: exp, log, masses, order keys, Philox, Gumbel noise.

The same constants and the same roundings as in csrc/core/numerics.h and csrc/core/philox.h. Kernels that call these
functions must be compiled with enable_fp_fusion=False, so that no product and sum are rounded together.
"""

import triton
import triton.language as tl

MASS_ONE = tl.constexpr(float(1 << 40))
INF = tl.constexpr(float("inf"))

_LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
_LN2_HI = tl.constexpr(float.fromhex("0x1.63p-1"))
_LN2_LO = tl.constexpr(float.fromhex("-0x1.bd0106p-13"))
_SQRT_HALF = tl.constexpr(float.fromhex("0x1.6a09e6p-1"))
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_ROUND_SMALL = tl.constexpr(float.fromhex("0x1.8p+23"))
_TWO_23 = tl.constexpr(float(1 << 23))
_EXP_MIN = tl.constexpr(-86.0)

_E0 = tl.constexpr(float.fromhex("0x1.a0d2cep-13"))
_E1 = tl.constexpr(float.fromhex("0x1.6e879cp-10"))
_E2 = tl.constexpr(float.fromhex("0x1.11121p-7"))
_E3 = tl.constexpr(float.fromhex("0x1.555382p-5"))
_E4 = tl.constexpr(float.fromhex("0x1.555554p-3"))

_L0 = tl.constexpr(float.fromhex("0x1.204376p-4"))
_L1 = tl.constexpr(float.fromhex("-0x1.d7a37p-4"))
_L2 = tl.constexpr(float.fromhex("0x1.de4a34p-4"))
_L3 = tl.constexpr(float.fromhex("-0x1.fcba9ep-4"))
_L4 = tl.constexpr(float.fromhex("0x1.23d37ep-3"))
_L5 = tl.constexpr(float.fromhex("-0x1.555cap-3"))
_L6 = tl.constexpr(float.fromhex("0x1.999d58p-3"))
_L7 = tl.constexpr(float.fromhex("-0x1.fffff8p-3"))
_L8 = tl.constexpr(float.fromhex("0x1.555554p-2"))


@triton.jit
def to_f32(x):
    """bfloat16, float16 or float32 as float32. bfloat16 by its bits: the interpreter's own conversion turns subnormal
    numbers into 0.
    """
    if x.dtype == tl.bfloat16:
        result = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def exp_f32(x):
    """eˣ for float32 x ≤ 0; exactly 1 at 0; 0 below −86."""
    c = tl.where(x < _EXP_MIN, _EXP_MIN, x)
    n = (c * _LOG2_E + _ROUND_SMALL) - _ROUND_SMALL
    r = c - n * _LN2_HI
    r = r - n * _LN2_LO
    p = r * _E0 + _E1
    p = p * r + _E2
    p = p * r + _E3
    p = p * r + _E4
    p = p * r + 0.5
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < _EXP_MIN, 0.0, p * scale)


@triton.jit
def _log_reduced(f, e):
    """log((1 + f)·2ᵉ) for 1 + f in [√½, √2] and integral e."""
    s = f * f
    p = f * _L0 + _L1
    p = p * f + _L2
    p = p * f + _L3
    p = p * f + _L4
    p = p * f + _L5
    p = p * f + _L6
    p = p * f + _L7
    p = p * f + _L8
    p = p * (f * s)
    p = p + e * _LN2_LO
    p = p - s * 0.5
    p = f + p
    return p + e * _LN2_HI


@triton.jit
def _reduce_log(x):
    """(f, e), x = (1 + f)·2ᵉ with 1 + f in [√½, √2), for positive normal x."""
    shifted = x.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    m = ((shifted & 0x007FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    return m - 1.0, (shifted >> 23).to(tl.float32)


@triton.jit
def log_f32(x):
    """Natural logarithm of positive normal float32."""
    f, e = _reduce_log(x)
    return _log_reduced(f, e)


@triton.jit
def mass_of(p):
    """int64 round(p·2⁴⁰), ties to even, for p in [0, 1]."""
    m = p * MASS_ONE
    rounded = tl.where(m < _TWO_23, (m + _TWO_23) - _TWO_23, m)  # above 2²³ every float32 is an integer
    return rounded.to(tl.int64)


@triton.jit
def top_p_limit(top_p, total):
    """ceil(top_p · total), the product rounded once in float64, and at least 1; int64."""
    product = top_p.to(tl.float64) * total.to(tl.float64)
    floor = product.to(tl.int64)
    ceiling = floor + (floor.to(tl.float64) < product).to(tl.int64)
    return tl.where(ceiling > 1, ceiling, 1)


@triton.jit
def order_key(x):
    """int64 in [−2³¹, 2³¹) with the same order as float32 x, in which there must be no −0."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def float_of_key(key):
    """The float32 that has this order key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _philox_words(seed, step, ids):
    """uint32 words 0 and 1 of the Philox4x32-10 block with key seed and counter (token, 0, step)."""
    c0 = ids.to(tl.uint32)
    c1 = c0 * 0
    c2 = c1 + step.to(tl.uint32)
    c3 = c1 + (step >> 32).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1


@triton.jit
def gumbel_noise(seed, step, ids):
    """float32 g(seed, step, token) for scalar int64 seed and step; see csrc/core/philox.h."""
    word0, word1 = _philox_words(seed, step, ids)
    hi = (word0 & 0x7FFFFFFF).to(tl.int32).to(tl.float32)
    lo = ((word1 >> 1) | 1).to(tl.int32).to(tl.float32)
    v = hi * 2.0**-32 + lo * 2.0**-63
    f, e = _reduce_log(v)
    w = 1.0 - v
    halve = w < _SQRT_HALF
    upper = word0 > 0x7FFFFFFF
    f = tl.where(upper, tl.where(halve, (w + w) - 1.0, -v), f)
    e = tl.where(upper, tl.where(halve, -1.0, 0.0), e)
    return -log_f32(-_log_reduced(f, e))
