// libfastdecode_cuda.so: the __global__ functions and their launches. Built with -fmad=false:
// products and sums are rounded separately, as in the reference.

#include <cuda_runtime.h>

#include "cuda/block.cuh"
#include "cuda/launch.h"
#include "fastdecode/fastdecode_cuda.h"

namespace fastdecode {
namespace {

constexpr size_t kSharedUnasked = 48 * 1024;  // a kernel that needs more must ask for it

template <class Kernel, int kThreads, class Call>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Call call) {
  __shared__ Shared shared;
  __shared__ uint64_t slots[kThreads / kWarp];
  CudaBlock<kThreads> block(shared, slots);
  Kernel::run(block, call);
}

class Device {
 public:
  explicit Device(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Kernel, int kThreads, class Call>
  fastdecode_result launch(int64_t blocks, int64_t values, const Call& call) {
    const size_t bytes = static_cast<size_t>(values) * sizeof(float);
    const auto function = kernel<Kernel, kThreads, Call>;
    cudaError_t error = cudaSuccess;
    if (bytes + sizeof(Shared) + 1024 > kSharedUnasked) {
      error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes));
    }
    if (error == cudaSuccess) {
      function<<<static_cast<unsigned>(blocks), kThreads, bytes, stream_>>>(call);
      error = cudaGetLastError();
    }
    if (error == cudaSuccess) return FASTDECODE_OK;
    return fail(static_cast<fastdecode_result>(FASTDECODE_CUDA_ERROR), "CUDA: %s: %s",
                cudaGetErrorName(error), cudaGetErrorString(error));
  }

 private:
  cudaStream_t stream_;
};

}  // namespace
}  // namespace fastdecode

#include "cuda/api.inc"
