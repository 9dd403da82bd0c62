// The decode kernels with avx2 instructions.
#define LANES 8
#define ROWS 2
#define KERNELS decode_kernels_avx2
#include "cpu/decode_kernels.inc"
