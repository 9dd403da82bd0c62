// fastdecode_cuda.h on a GPU for memory of the host: what a call reads and writes is copied there
// and back. It is for tests, which so run the same cases on the kernels' emulation and on the
// library.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastdecode/fastdecode_cuda.h"

namespace {

std::string message;
int replays = 0;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void check(fastdecode_result result) {
  if (result != FASTDECODE_OK) throw std::runtime_error(fastdecode_cuda_last_error());
}

// Copies of a call's arrays, each in an allocation of its own, so that compute-sanitizer sees what
// leaves one. What is written comes back with `fetch`.
class Copies {
 public:
  Copies() = default;
  Copies(const Copies&) = delete;
  ~Copies() {
    for (const Copy& copy : copies_) cudaFree(copy.device);
  }

  // Points to the device's copy of so many elements; a null pointer stays null. One that was
  // copied before is the same copy.
  template <typename T>
  void move(T*& array, int64_t count) {
    array = static_cast<T*>(moved(const_cast<void*>(static_cast<const void*>(array)),
                                  sizeof(T) * static_cast<size_t>(count)));
  }
  void move_bytes(const void*& array, int64_t bytes) {
    array = moved(const_cast<void*>(array), static_cast<size_t>(bytes));
  }

  void fetch() {
    for (const Copy& copy : copies_) {
      check(cudaMemcpy(copy.host, copy.device, copy.bytes, cudaMemcpyDeviceToHost));
    }
  }

 private:
  struct Copy {
    void *host, *device;
    size_t bytes;
  };

  void* moved(void* host, size_t bytes) {
    if (host == nullptr) return nullptr;
    for (const Copy& copy : copies_) {
      if (copy.host == host && copy.bytes == bytes) return copy.device;
    }
    Copy copy = {host, nullptr, bytes};
    check(cudaMalloc(&copy.device, bytes > 0 ? bytes : 1));
    copies_.push_back(copy);
    check(cudaMemcpy(copy.device, host, bytes, cudaMemcpyHostToDevice));
    return copy.device;
  }

  std::vector<Copy> copies_;
};

int64_t elements(int64_t rows, int64_t stride, int64_t columns) {
  return rows > 0 ? (rows - 1) * stride + columns : 0;
}

void move(Copies& copies, fastdecode_sample_args& a) {
  const int64_t groups = a.groups, streams = groups * a.streams_per_group;
  const int64_t ranges = a.set_offsets != nullptr ? a.set_offsets[a.sets] : 0;
  copies.move_bytes(
      a.logits, elements(a.rows, a.row_stride, a.vocab) * (a.dtype == FASTDECODE_FLOAT32 ? 4 : 2));
  copies.move(a.streams, streams);
  copies.move(a.weights, streams);
  copies.move(a.ranges, 2 * ranges);
  copies.move(a.set_offsets, a.sets + 1);
  copies.move(a.set_index, groups);
  copies.move(a.temperature, groups);
  copies.move(a.top_k, groups);
  copies.move(a.top_p, groups);
  copies.move(a.min_p, groups);
  copies.move(a.penalty, groups);
  copies.move(a.seed, groups);
  copies.move(a.step, groups);
  copies.move(a.seen, groups * ((a.vocab + 31) / 32));
  copies.move(a.noise, elements(groups, a.noise_stride, a.vocab));
  copies.move(a.token, groups);
  copies.move(a.logprob, groups);
  copies.move(a.kept, groups);
  copies.move(a.status, groups);
}

// `drawn`: of a sample_advance, the sample; else null.
void move(Copies& copies, fastdecode_advance_args& a, const fastdecode_sample_args* drawn) {
  fastdecode_grammar& t = a.grammar;
  const int64_t groups = drawn != nullptr ? drawn->groups : a.groups;
  const int64_t rows = drawn != nullptr ? drawn->rows : a.rows;
  const int64_t vocab = drawn != nullptr ? drawn->vocab : a.vocab;
  copies.move(t.set_of, t.modes);
  copies.move(t.tight_set_of, t.modes);
  copies.move(t.room, t.modes);
  copies.move(t.forced, t.modes);
  copies.move(t.following, t.modes * t.classes);
  copies.move(t.class_ranges, 3 * t.class_range_count);
  if (drawn == nullptr) {
    copies.move(a.streams, groups * a.streams_per_group);
    copies.move(a.token, groups);
  }
  copies.move(a.mode, groups);
  copies.move(a.step, groups);
  copies.move(a.limit, groups);
  copies.move(a.finished, groups);
  copies.move(a.inputs, rows);
  copies.move(a.lengths, rows);
  copies.move(a.seen, groups * ((vocab + 31) / 32));
  copies.move(a.sequences, groups * a.capacity);
}

// The bytes of a workspace and some behind them, which a call must leave as they are.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&memory_, bytes + kBehind));
    check(cudaMemset(memory_, 0xa5, bytes + kBehind));
  }
  Workspace(const Workspace&) = delete;
  ~Workspace() { cudaFree(memory_); }

  void* begin() const { return memory_; }
  void look_behind() const {
    std::vector<unsigned char> behind(kBehind);
    check(cudaMemcpy(behind.data(), static_cast<char*>(memory_) + bytes_, kBehind,
                     cudaMemcpyDeviceToHost));
    for (const unsigned char byte : behind) {
      if (byte != 0xa5) throw std::runtime_error("written behind the workspace");
    }
  }

 private:
  static constexpr size_t kBehind = 256;
  size_t bytes_;
  void* memory_ = nullptr;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  ~Stream() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }

  // Makes the call, or captures it and replays it as often as was asked for.
  template <typename F>
  void run(F call) {
    // Copies from the host may still be on their way, and this stream does not wait for them.
    check(cudaStreamSynchronize(nullptr));
    if (replays == 0) {
      check(call(stream_));
    } else {
      cudaGraph_t captured = nullptr;
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
      const fastdecode_result result = call(stream_);
      check(cudaStreamEndCapture(stream_, &captured));
      check(result);
      check(cudaGraphInstantiate(&graph_, captured, 0));
      check(cudaGraphDestroy(captured));
      for (int i = 0; i < replays; ++i) check(cudaGraphLaunch(graph_, stream_));
    }
    check(cudaStreamSynchronize(stream_));
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

template <typename F>
fastdecode_result caught(F f) {
  try {
    f();
    return FASTDECODE_OK;
  } catch (const std::exception& error) {
    message = error.what();
    return FASTDECODE_INVALID_ARGUMENT;
  }
}

}  // namespace

extern "C" {

int on_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void on_device_replays(int number) {
  replays = number;
}

const char* on_device_last_error() {
  return message.c_str();
}

fastdecode_result on_device_workspace(const fastdecode_sample_args* args, int64_t largest_set,
                                      size_t* bytes) {
  return caught([&] { check(fastdecode_cuda_workspace(args, largest_set, bytes)); });
}

fastdecode_result on_device_sample(const fastdecode_sample_args* args, int64_t largest_set, void*,
                                   size_t workspace_bytes, void*) {
  return caught([&] {
    fastdecode_sample_args moved = *args;
    Copies copies;
    move(copies, moved);
    const Workspace workspace(workspace_bytes);
    Stream().run([&](cudaStream_t stream) {
      return fastdecode_cuda_sample(&moved, largest_set, workspace.begin(), workspace_bytes,
                                    stream);
    });
    workspace.look_behind();
    copies.fetch();
  });
}

fastdecode_result on_device_advance(const fastdecode_advance_args* args, void*) {
  return caught([&] {
    fastdecode_advance_args moved = *args;
    Copies copies;
    move(copies, moved, nullptr);
    Stream().run([&](cudaStream_t stream) { return fastdecode_cuda_advance(&moved, stream); });
    copies.fetch();
  });
}

fastdecode_result on_device_sample_advance(const fastdecode_sample_args* sample,
                                           const fastdecode_advance_args* advance,
                                           int64_t largest_set, void*, size_t workspace_bytes,
                                           void*) {
  return caught([&] {
    fastdecode_sample_args drawn = *sample;
    fastdecode_advance_args moved = *advance;
    Copies copies;
    move(copies, drawn);
    move(copies, moved, sample);
    const Workspace workspace(workspace_bytes);
    Stream().run([&](cudaStream_t stream) {
      return fastdecode_cuda_sample_advance(&drawn, &moved, largest_set, workspace.begin(),
                                            workspace_bytes, stream);
    });
    workspace.look_behind();
    copies.fetch();
  });
}

}  // extern "C"
