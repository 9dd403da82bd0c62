// As much of CUDA's runtime as our programs use, on the CPU: memory of the host that only these
// functions may copy, streams that run what they are given at once, and graphs that keep it.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1 };

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

#define FAKE_CUDA __attribute__((visibility("default")))

extern "C" {
FAKE_CUDA cudaError_t cudaGetDeviceCount(int* count);
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
}
