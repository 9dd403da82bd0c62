#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_runtime.h"

namespace {

std::mutex mutex;
std::map<const char*, size_t> device_memory;  // of all that cudaMalloc gave

constexpr int kDevices = 2;
constexpr size_t kSharedUnasked = 48 * 1024, kSharedOfKernels = 25 * 1024;  // at most, see Shared

std::map<std::pair<int, const void*>, size_t> kernels;  // loaded, by device: shared memory allowed
int captures = 0;
bool refuses_launches = false;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) {
  return last_error = error;
}

// The shared memory that the kernel may ask for on the current device. Loads it, if it is new
// there.
size_t& allowed(const void* function) {
  const auto [at, is_new] =
      kernels.try_emplace({current_device, function}, kSharedUnasked - kSharedOfKernels);
  if (is_new) ++fake_cuda_record.loads;
  if (is_new && captures > 0) ++fake_cuda_record.loads_in_captures;
  return at->second;
}

// Whether all of it lies in one piece of device memory, or none of it in any.
bool lies(const void* memory, size_t bytes, bool on_device) {
  const std::lock_guard<std::mutex> lock(mutex);
  const char* begin = static_cast<const char*>(memory);
  auto after = device_memory.upper_bound(begin);
  if (after == device_memory.begin()) return !on_device;
  --after;
  const char* end = after->first + after->second;
  return on_device ? begin + bytes <= end : begin >= end;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return failed(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const std::lock_guard<std::mutex> lock(mutex);
  ++fake_cuda_record.errors_taken;
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  return last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice" : "cudaErrorInvalidValue";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid argument";
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xa5, bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  device_memory[static_cast<const char*>(*memory)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex);
  if (device_memory.erase(static_cast<const char*>(memory)) == 0) return cudaErrorInvalidValue;
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (!lies(memory, bytes, true)) return cudaErrorInvalidValue;
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const bool up = kind == cudaMemcpyHostToDevice;
  if (!lies(to, bytes, up) || !lies(from, bytes, !up)) return cudaErrorInvalidValue;
  stream->add([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  FakeStream at_once;
  return cudaMemcpyAsync(to, from, bytes, kind, &at_once);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new FakeStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream == nullptr || stream->captured == nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard<std::mutex> lock(mutex);
  ++captures;
  stream->captured = new FakeGraph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::mutex> lock(mutex);
  --captures;
  *graph = stream->captured;
  stream->captured = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new FakeGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const std::function<void()>& work : exec->works) stream->add(work);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const std::lock_guard<std::mutex> lock(mutex);
  allowed(function);
  attributes->sharedSizeBytes = kSharedOfKernels;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  allowed(function) = static_cast<size_t>(value);
  ++fake_cuda_record.attributes_set;
  fake_cuda_record.largest_attribute = std::max<int64_t>(fake_cuda_record.largest_attribute, value);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 blocks, dim3, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (refuses_launches || shared_bytes > allowed(function)) return failed(cudaErrorInvalidValue);
  }
  reinterpret_cast<FakeKernel>(const_cast<void*>(function))(blocks.x, shared_bytes, arguments,
                                                            stream);
  return cudaSuccess;
}

void fake_cuda_refuse_launches(bool refuse) {
  refuses_launches = refuse;
}

FakeRecord fake_cuda_record = {};

}  // extern "C"
