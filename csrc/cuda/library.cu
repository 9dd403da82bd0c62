// libfastdecode_cuda.so: the __global__ functions and their launches. Built with -fmad=false:
// products and sums are rounded separately, as in the reference.

#include "cuda/block.cuh"

namespace fastdecode {
namespace {

template <class Kernel, int kThreads, class Call>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
  __shared__ uint64_t slots[kThreads / kWarp];
  CudaBlock<kThreads> block(shared, slots);
  Kernel::run(block, call);
}

}  // namespace
}  // namespace fastdecode

#include "cuda/api.inc"
