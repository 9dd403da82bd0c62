// Tokens drawn on a GPU: tables, parameters, modes and sequences lie there, and a step is one
// upload of what the server has set, one of the logits, one call, and one download of what it has
// moved. The model of this example runs on the CPU; with one that writes its logits into device
// memory the large one of these copies is not needed.
#pragma once

#include <cuda_runtime.h>
#include <fastdecode/fastdecode_cuda.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "calls.h"

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline void check_cuda(fastdecode_result result) {
  if (result != FASTDECODE_OK) throw std::runtime_error(fastdecode_cuda_last_error());
}

inline std::shared_ptr<void> device_memory(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  return {memory, cudaFree};
}

// Memory of the host that a GPU copies from and to by itself.
inline std::shared_ptr<void> pinned_memory(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes));
  std::memset(memory, 0, bytes);
  return {memory, cudaFreeHost};
}

class CudaCalls : public Calls {
 public:
  // `graph`: a step is captured once and replayed.
  CudaCalls(const Grammar& grammar, const Sizes& sizes, bool graph)
      : host_(sizes, pinned_memory), device_(sizes, device_memory), graph_(graph) {
    bind(device_, sample_, advance_);
    grammar.bind(sample_, advance_);
    const int64_t sets = sample_.sets, ranges = sample_.set_offsets[sets];
    send(sample_.ranges, 2 * ranges);
    send(sample_.set_offsets, sets + 1);
    fastdecode_grammar& tables = advance_.grammar;
    send(tables.set_of, tables.modes);
    send(tables.tight_set_of, tables.modes);
    send(tables.room, tables.modes);
    send(tables.forced, tables.modes);
    send(tables.following, tables.modes * tables.classes);
    send(tables.class_ranges, 3 * tables.class_range_count);
    check_cuda(fastdecode_cuda_workspace(&sample_, sizes.vocab, &workspace_bytes_));
    if (workspace_bytes_ > 0) workspace_ = device_memory(workspace_bytes_);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  CudaCalls(const CudaCalls&) = delete;
  ~CudaCalls() override {
    if (step_ != nullptr) cudaGraphExecDestroy(step_);
    cudaStreamDestroy(stream_);
  }

  State& state() override { return host_; }

  void send_seen(int64_t slot) override {
    const int64_t at = slot * host_.words;
    copy(device_.seen + at, host_.seen + at, sizeof(uint32_t) * host_.words,
         cudaMemcpyHostToDevice);
  }

  void draw() override {
    if (graph_ && step_ == nullptr) capture();
    if (graph_) {
      check(cudaGraphLaunch(step_, stream_));
    } else {
      enqueue();
    }
    check(cudaStreamSynchronize(stream_));
  }

 private:
  void enqueue() {
    copy(device_.begin, host_.begin, host_.results - host_.begin, cudaMemcpyHostToDevice);
    copy(device_.logits, host_.logits, sizeof(float) * sample_.rows * sample_.vocab,
         cudaMemcpyHostToDevice);
    check_cuda(fastdecode_cuda_sample_advance(&sample_, &advance_, sample_.vocab, workspace_.get(),
                                              workspace_bytes_, stream_));
    copy(host_.moved, device_.moved, host_.end - host_.moved, cudaMemcpyDeviceToHost);
  }

  void capture() {
    cudaGraph_t graph = nullptr;
    // Other workers call CUDA meanwhile.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    enqueue();
    check(cudaStreamEndCapture(stream_, &graph));
    check(cudaGraphInstantiate(&step_, graph, 0));
    check(cudaGraphDestroy(graph));
  }

  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_));
  }

  // Points to a copy in device memory instead.
  void send(const int32_t*& table, int64_t count) {
    const size_t bytes = sizeof(int32_t) * count;
    tables_.push_back(device_memory(bytes));
    void* copied = tables_.back().get();
    check(cudaMemcpy(copied, table, bytes, cudaMemcpyHostToDevice));
    table = static_cast<const int32_t*>(copied);
  }

  State host_, device_;
  const bool graph_;
  std::vector<std::shared_ptr<void>> tables_;
  std::shared_ptr<void> workspace_;
  size_t workspace_bytes_ = 0;
  fastdecode_sample_args sample_;
  fastdecode_advance_args advance_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t step_ = nullptr;
};
