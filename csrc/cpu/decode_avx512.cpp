// The decode kernels with avx512 instructions.
#define LANES 16
#define ROWS 6
#include "cpu/decode_kernels.inc"

namespace fastdecode {

const DecodeKernels decode_kernels_avx512 = {rms_norm, linear, silu_multiply, attend};

}  // namespace fastdecode
