// The decode kernels with avx512 and avx512_bf16 instructions.
#define LANES 16
#define ROWS 4
#define KERNELS decode_kernels_avx512bf16
#include "cpu/decode_kernels.inc"
