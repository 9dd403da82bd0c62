// The decode kernels with avx2 instructions.
#define LANES 8
#define ROWS 2
#include "cpu/decode_kernels.inc"

namespace fastdecode {

const DecodeKernels decode_kernels_avx2 = {rms_norm, linear, silu_multiply, attend};

}  // namespace fastdecode
