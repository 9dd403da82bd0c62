// As much of CUDA's runtime as our programs use, on the CPU: memory of the host that only these
// functions may copy, streams that run what they are given at once, and graphs that keep it.
// Kernels are refused that ask for more shared memory than they were allowed on their device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidDevice };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct FakeGraph {
  std::vector<std::function<void()>> works;
};
struct FakeStream {
  FakeGraph* captured = nullptr;

  void add(std::function<void()> work) {
    if (captured == nullptr) return work();
    captured->works.push_back(work);
  }
};
using cudaStream_t = FakeStream*;
using cudaGraph_t = FakeGraph*;
using cudaGraphExec_t = FakeGraph*;

struct dim3 {
  unsigned x;
  explicit dim3(unsigned x) : x(x) {}
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
// What stands behind a kernel's address: runs its blocks, or lets the stream run them.
using FakeKernel = void (*)(unsigned blocks, size_t shared_bytes, void** arguments, cudaStream_t);

// What was done since the library was loaded.
struct FakeRecord {
  int64_t loads;              // of a kernel on a device
  int64_t loads_in_captures;  // while a stream was captured
  int64_t attributes_set;
  int64_t largest_attribute;
  int64_t errors_taken;  // calls of cudaGetLastError
};

#define FAKE_CUDA __attribute__((visibility("default")))

extern "C" {
FAKE_CUDA cudaError_t cudaGetDeviceCount(int* count);
FAKE_CUDA cudaError_t cudaGetDevice(int* device);
FAKE_CUDA cudaError_t cudaSetDevice(int device);
FAKE_CUDA cudaError_t cudaGetLastError();
FAKE_CUDA cudaError_t cudaPeekAtLastError();
FAKE_CUDA const char* cudaGetErrorName(cudaError_t error);
FAKE_CUDA const char* cudaGetErrorString(cudaError_t error);
FAKE_CUDA cudaError_t cudaMalloc(void** memory, size_t bytes);
FAKE_CUDA cudaError_t cudaFree(void* memory);
FAKE_CUDA cudaError_t cudaMallocHost(void** memory, size_t bytes);
FAKE_CUDA cudaError_t cudaFreeHost(void* memory);
FAKE_CUDA cudaError_t cudaMemset(void* memory, int value, size_t bytes);
FAKE_CUDA cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
FAKE_CUDA cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream);
FAKE_CUDA cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
FAKE_CUDA cudaError_t cudaStreamDestroy(cudaStream_t stream);
FAKE_CUDA cudaError_t cudaStreamSynchronize(cudaStream_t stream);
FAKE_CUDA cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
FAKE_CUDA cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
FAKE_CUDA cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           unsigned long long flags);
FAKE_CUDA cudaError_t cudaGraphDestroy(cudaGraph_t graph);
FAKE_CUDA cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
FAKE_CUDA cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
FAKE_CUDA cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function);
FAKE_CUDA cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute,
                                           int value);
FAKE_CUDA cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads,
                                       void** arguments, size_t shared_bytes, cudaStream_t stream);
FAKE_CUDA void fake_cuda_refuse_launches(bool refuse);
extern FAKE_CUDA FakeRecord fake_cuda_record;
}
