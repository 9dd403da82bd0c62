// The decode kernels with the baseline's instructions.
#define LANES 4
#define ROWS 2
#include "cpu/decode_kernels.inc"

namespace fastdecode {

const DecodeKernels decode_kernels_portable = {rms_norm, linear, silu_multiply, attend};

}  // namespace fastdecode
