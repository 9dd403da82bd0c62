"""Weights of one byte as bfloat16, which holds each of them exactly: int8, and float8_e4m3fn as uint8.

`of_pairs` reads int16, which holds two bytes, with few instructions; `of_bytes` runs anywhere, in the interpreter too.
"""

import triton
import triton.language as tl

from fastdecode.triton_kernels.products import ON_TENSOR_CORES


@triton.jit
def of_bytes(w):
    """bfloat16 of int8 or uint8 w. uint8 holds the bits of float8_e4m3fn, in which 0x7f is NaN."""
    if w.dtype == tl.uint8:
        bits = w.to(tl.int32)
        magnitude = bits & 0x7F
        # Exponent and mantissa moved to their places in float32. The exponent biases differ by 120, hence the factor.
        value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
        value = tl.where(magnitude == 0x7F, float("nan"), value)
        result = tl.where(bits >= 0x80, -value, value)
    else:
        result = w.to(tl.float32)
    return (result.to(tl.int32, bitcast=True) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def of_pairs(w, FLOAT8: tl.constexpr, CONVERTS: tl.constexpr):
    """bfloat16 of the low and the high bytes of int16 w. CONVERTS: the device converts float8_e4m3fn (from sm_89)."""
    if ON_TENSOR_CORES and not FLOAT8:
        # A byte is m − 128 · s, of 7 bits m and a sign s. 0x4300 is 128 in bfloat16; with m in its lowest bits it is
        # 128 + m. 0xc300 is −128; with s in bit 7, which doubles it, −128 · (1 + s). The sum of both is the byte.
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 w, m, s, one;
            mov.b32 one, 0x3f803f80;
            lop3.b32 m, $2, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 s, $2, 0x00800080, 0xc300c300, 0xea;
            fma.rn.bf16x2 $0, m, one, s;
            shr.u32 w, $2, 8;
            lop3.b32 m, w, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 s, w, 0x00800080, 0xc300c300, 0xea;
            fma.rn.bf16x2 $1, m, one, s;
            }
            """,
            "=&r,=&r,r", [w], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    elif ON_TENSOR_CORES and CONVERTS:
        # By float16 and float32; their lower halves are 0.
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b16 a, b;
            .reg .b32 c, d;
            .reg .f32 f0, f1, f2, f3;
            mov.b32 {a, b}, $2;
            cvt.rn.f16x2.e4m3x2 c, a;
            cvt.rn.f16x2.e4m3x2 d, b;
            mov.b32 {a, b}, c;
            cvt.f32.f16 f0, a;
            cvt.f32.f16 f1, b;
            mov.b32 {a, b}, d;
            cvt.f32.f16 f2, a;
            cvt.f32.f16 f3, b;
            prmt.b32 $0, f0, f2, 0x7632;
            prmt.b32 $1, f1, f3, 0x7632;
            }
            """,
            "=&r,=&r,r", [w], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        bits = w.to(tl.uint16, bitcast=True)
        low, high = bits.to(tl.uint8), (bits >> 8).to(tl.uint8)
        if not FLOAT8:
            low, high = low.to(tl.int8, bitcast=True), high.to(tl.int8, bitcast=True)
        low, high = of_bytes(low), of_bytes(high)
    return low, high
