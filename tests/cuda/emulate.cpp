// fastdecode_cuda.h on the CPU: each kernel's blocks one after another, each block's threads one
// after another between barriers. What order they come in is a seed's choice, so that a kernel
// that relies on one gives itself away. Shared memory begins as garbage in every block.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/block.h"
#include "fake_cuda/cuda_runtime.h"

namespace fastdecode {
namespace {

thread_local uint64_t order = 1;
thread_local int64_t launches = 0;

uint64_t random_number() {
  order ^= order << 13;
  order ^= order >> 7;
  return order ^= order << 17;
}

std::vector<int64_t> shuffled(int64_t n) {
  std::vector<int64_t> numbers(n);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (int64_t i = n - 1; i > 0; --i) {
    std::swap(numbers[i], numbers[random_number() % static_cast<uint64_t>(i + 1)]);
  }
  return numbers;
}

template <int kThreads>
class EmulatedBlock {
 public:
  EmulatedBlock(int64_t index, int64_t values) : index_(index), values_(values) {
    std::memset(static_cast<void*>(&shared_), 0xa5, sizeof shared_);
    if (values > 0) std::memset(values_.data(), 0xa5, static_cast<size_t>(values) * sizeof(float));
    const std::vector<int64_t> numbers = shuffled(kThreads);
    for (int t = 0; t < kThreads; ++t) threads_[t] = static_cast<int>(numbers[t]);
  }

  int64_t index() const { return index_; }
  Shared& shared() { return shared_; }
  float* values() { return values_.data(); }

  template <typename F>
  void each(int n, F f) {
    for (const int thread : threads_) {
      for (int i = thread; i < n; i += kThreads) f(i);
    }
  }

  template <typename F>
  void once(F f) {
    f();
  }

  template <typename F>
  uint64_t sum(int n, F f) {
    uint64_t total = 0;
    each(n, [&](int i) { total += f(i); });
    return total;
  }

  template <typename F>
  uint64_t max(int n, F f) {
    uint64_t largest = 0;
    each(n, [&](int i) {
      const uint64_t value = f(i);
      largest = value > largest ? value : largest;
    });
    return largest;
  }

  // All loads of a thread's round first, those behind the end of the last one again.
  template <typename Load, typename Use>
  uint64_t max_of(int n, Load load, Use use) {
    constexpr int kTogether = 4;
    uint64_t largest = 0;
    for (const int thread : threads_) {
      for (int first = thread; first < n; first += kTogether * kThreads) {
        std::vector<decltype(load(0))> loaded;
        for (int j = 0; j < kTogether; ++j) {
          loaded.push_back(load(std::min(first + j * kThreads, n - 1)));
        }
        for (int j = 0; j < kTogether && first + j * kThreads < n; ++j) {
          largest = std::max(largest, use(first + j * kThreads, loaded[j]));
        }
      }
    }
    return largest;
  }

  bool last(uint32_t* count, uint32_t of) { return (*count)++ == of - 1; }

  // First all weights, then all places, as on a GPU: `to` must not change what `f` reads.
  template <typename F, typename To>
  uint64_t prefix(int n, F f, To to) {
    std::vector<uint64_t> before(static_cast<size_t>(n) + 1, 0);
    for (int i = 0; i < n; ++i) before[i + 1] = before[i] + f(i);
    each(n, [&](int i) { to(i, before[i]); });
    return before[n];
  }

  template <typename T>
  T add(T* to, T value) {
    const T before = *to;
    *to = before + value;
    return before;
  }

  void raise(uint64_t* to, uint64_t value) { *to = std::max(*to, value); }

 private:
  int64_t index_;
  int threads_[kThreads];
  Shared shared_;
  std::vector<float> values_;
};

// A FakeKernel.
template <class Kernel, int kThreads, class Call>
void kernel(unsigned blocks, size_t shared_bytes, void** arguments, cudaStream_t stream) {
  ++launches;
  const Call call = *static_cast<const Call*>(arguments[0]);
  const int64_t values = static_cast<int64_t>(shared_bytes / sizeof(float));
  const auto run = [=] {
    for (const int64_t index : shuffled(blocks)) {
      EmulatedBlock<kThreads> block(index, values);
      Kernel::run(block, call);
    }
  };
  if (stream == nullptr) {
    run();
  } else {
    stream->add(run);
  }
}

}  // namespace
}  // namespace fastdecode

#include "cuda/api.inc"

extern "C" {

FAKE_CUDA void emulate_seed(uint64_t seed) {
  fastdecode::order = seed * 2 + 1;
}

// Kernels launched since the last call of this.
FAKE_CUDA int64_t emulate_launches() {
  const int64_t n = fastdecode::launches;
  fastdecode::launches = 0;
  return n;
}

}  // extern "C"
