// The decode kernels with avx512 instructions.
#define LANES 16
#define ROWS 4
#define KERNELS decode_kernels_avx512
#include "cpu/decode_kernels.inc"
