"""Weights of 4 bits as bfloat16, which holds each of them exactly.

`of_fours` reads int16, which holds four signed weights, the first in its lowest bits. It takes two int16 apart at once
with few instructions on a GPU, and one weight after another in the interpreter.
"""

import triton
import triton.language as tl

from fastdecode.triton_kernels.products import ON_TENSOR_CORES


@triton.jit
def _of_bits(bits):
    """bfloat16 of a signed weight, whose 4 bits are the lowest of int32 ``bits``."""
    value = (((bits & 15) ^ 8) - 8).to(tl.float32)
    return (value.to(tl.int32, bitcast=True) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def of_fours(w):
    """bfloat16 of the first, second, third and fourth weight of int16 w."""
    if ON_TENSOR_CORES:
        # 0x4300 is 128 in bfloat16, and with 4 bits b in its lowest ones it is 128 + b. With the sign bit of b turned
        # over, as 0x4308 does, it is 136 + the weight. 0xc308 is −136, and 0x3f80 is 1.
        first, second, third, fourth = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 w, a, b, c, d, one, less;
            mov.b32 one, 0x3f803f80;
            mov.b32 less, 0xc308c308;
            lop3.b32 a, $4, 0x000f000f, 0x43084308, 0x6a;
            shr.u32 w, $4, 4;
            lop3.b32 b, w, 0x000f000f, 0x43084308, 0x6a;
            shr.u32 w, $4, 8;
            lop3.b32 c, w, 0x000f000f, 0x43084308, 0x6a;
            shr.u32 w, $4, 12;
            lop3.b32 d, w, 0x000f000f, 0x43084308, 0x6a;
            fma.rn.bf16x2 $0, a, one, less;
            fma.rn.bf16x2 $1, b, one, less;
            fma.rn.bf16x2 $2, c, one, less;
            fma.rn.bf16x2 $3, d, one, less;
            }
            """,
            "=&r,=&r,=&r,=&r,r", [w], dtype=(tl.bfloat16,) * 4, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        bits = w.to(tl.int32)
        first, second, third, fourth = _of_bits(bits), _of_bits(bits >> 4), _of_bits(bits >> 8), _of_bits(bits >> 12)
    return first, second, third, fourth
