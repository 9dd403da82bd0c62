// The decode kernels with the baseline's instructions.
#define LANES 4
#define ROWS 2
#define KERNELS decode_kernels_portable
#include "cpu/decode_kernels.inc"
