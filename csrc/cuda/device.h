// How the kernels are loaded and launched, through CUDA's runtime. For a unit that defines the
// function template `kernel<Kernel, kThreads, Call>` before it includes this file.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <mutex>
#include <set>

#include "core/error.h"
#include "cuda/kernels.h"
#include "cuda/sample_cut.h"
#include "fastdecode/fastdecode_cuda.h"

namespace fastdecode {
namespace {

// Sets of up to so many tokens fit into a block's shared memory: 64 KiB. Tests build with 0.
#if !defined(FASTDECODE_CUDA_SMALL_SET)
#define FASTDECODE_CUDA_SMALL_SET 16384
#endif
constexpr int64_t kSmallSet = FASTDECODE_CUDA_SMALL_SET;
constexpr int64_t kFew = 1024;                // sets of up to so many tokens get a small block
constexpr size_t kSharedUnasked = 48 * 1024;  // a kernel that needs more must ask for it

template <class Kernel, int kThreads, class Call>
const void* function_of() {
  return reinterpret_cast<const void*>(kernel<Kernel, kThreads, Call>);
}

// Loads a kernel on the current device, which else happens at its first launch, and lets it ask for
// as many floats of shared memory as its largest launch does.
template <class Kernel, int kThreads, class Call>
cudaError_t load(int64_t values) {
  const void* function = function_of<Kernel, kThreads, Call>();
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, function);
  const size_t bytes = static_cast<size_t>(values) * sizeof(float);
  if (error != cudaSuccess || attributes.sharedSizeBytes + bytes <= kSharedUnasked) return error;
  return cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

inline cudaError_t first_of(std::initializer_list<cudaError_t> errors) {
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t load_kernels_of_type() {
  return first_of({load<SampleSmall<T>, 128, Call>(kFew),
                   load<SampleSmall<T>, 512, Call>(kSmallSet),
                   load<Mix<T>, kLargeThreads, Call>(0)});
}

// Loads all kernels on the current device, once. After an error the next call tries again.
inline cudaError_t load_kernels() {
  static std::mutex mutex;
  static std::set<int> loaded;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (loaded.count(device) > 0) return cudaSuccess;
  error =
      first_of({load_kernels_of_type<float>(), load_kernels_of_type<BFloat16>(),
                load_kernels_of_type<Float16>(), load<Count, kLargeThreads, Call>(0),
                load<List, kLargeThreads, Call>(kChunk), load<Draw, kLargeThreads, Call>(kChunk),
                load<Advance, kAdvanceThreads, fastdecode_advance_args>(0)});
  if (error == cudaSuccess) loaded.insert(device);
  return error;
}

// `values`: floats of shared memory. Reads no error but those that its own calls return:
// cudaGetLastError would take one from the program around the library.
template <class Kernel, int kThreads, class Call>
fastdecode_result launch(void* stream, int64_t blocks, int64_t values, const Call& call) {
  cudaError_t error = load_kernels();
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<Call*>(&call)};
    error = cudaLaunchKernel(
        function_of<Kernel, kThreads, Call>(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
        arguments, static_cast<size_t>(values) * sizeof(float), static_cast<cudaStream_t>(stream));
  }
  if (error == cudaSuccess) return FASTDECODE_OK;
  return fail(static_cast<fastdecode_result>(FASTDECODE_CUDA_ERROR), "CUDA: %s: %s",
              cudaGetErrorName(error), cudaGetErrorString(error));
}

}  // namespace
}  // namespace fastdecode
