// A block of threads on a GPU, see block.h. The number of threads is a multiple of 32.
#pragma once

#include "cuda/block.h"

namespace fastdecode {
namespace {

constexpr unsigned kEveryLane = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kTogether = 4;  // reads that a thread starts before it uses the first

extern __shared__ float dynamic_shared[];

template <int kThreads>
class CudaBlock {
 public:
  __device__ CudaBlock(Shared& shared, uint64_t* slots) : shared_(shared), slots_(slots) {}

  __device__ int64_t index() const { return blockIdx.x; }
  __device__ Shared& shared() const { return shared_; }
  __device__ float* values() const { return dynamic_shared; }

  template <typename F>
  __device__ void each(int n, F f) const {
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) f(i);
    __syncthreads();
  }

  template <typename F>
  __device__ void once(F f) const {
    __syncthreads();
    if (threadIdx.x == 0) f();
    __syncthreads();
  }

  template <typename F>
  __device__ uint64_t sum(int n, F f) const {
    return reduced(n, f, [](uint64_t a, uint64_t b) { return a + b; });
  }

  template <typename F>
  __device__ uint64_t max(int n, F f) const {
    return reduced(n, f, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }

  // No branch surrounds the loads of a round, so that all of them start before the first is used.
  template <typename Load, typename Use>
  __device__ uint64_t max_of(int n, Load load, Use use) const {
    return over_threads(
        [&] {
          uint64_t own = 0;
          for (int first = threadIdx.x; first < n; first += kTogether * kThreads) {
            decltype(load(0)) loaded[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
              loaded[j] = load(min(first + j * kThreads, n - 1));
            }
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
              const int i = first + j * kThreads;
              if (i >= n) break;
              const uint64_t value = use(i, loaded[j]);
              own = value > own ? value : own;
            }
          }
          return own;
        },
        [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }

  // The first fence orders this block's writes before its count; the second orders the count before
  // the last block's reads. The barriers extend both to all threads.
  __device__ bool last(uint32_t* count, uint32_t of) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      slots_[0] = atomicAdd(count, 1u) == of - 1;
      __threadfence();
    }
    __syncthreads();
    const bool is_last = slots_[0] != 0;
    __syncthreads();
    return is_last;
  }

  // Each thread adds up a stretch of its own.
  template <typename F, typename To>
  __device__ uint64_t prefix(int n, F f, To to) const {
    __syncthreads();
    const int width = (n + kThreads - 1) / kThreads;
    const int first = min(static_cast<int>(threadIdx.x) * width, n), last = min(first + width, n);
    uint64_t own = 0;
    for (int i = first; i < last; ++i) own += f(i);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint64_t through = own;  // the sum of the lanes up to this one
    for (int step = 1; step < kWarp; step *= 2) {
      const uint64_t lower = __shfl_up_sync(kEveryLane, through, step);
      if (lane >= step) through += lower;
    }
    if (lane == kWarp - 1) slots_[warp] = through;
    __syncthreads();
    uint64_t before = through - own, all = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w == warp) before += all;
      all += slots_[w];
    }
    for (int i = first; i < last; ++i) {
      const uint64_t weight = f(i);
      to(i, before);
      before += weight;
    }
    __syncthreads();
    return all;
  }

  __device__ uint32_t add(uint32_t* to, uint32_t value) const { return atomicAdd(to, value); }
  __device__ uint64_t add(uint64_t* to, uint64_t value) const {
    return atomicAdd(reinterpret_cast<unsigned long long*>(to), value);
  }
  __device__ void raise(uint64_t* to, uint64_t value) const {
    atomicMax(reinterpret_cast<unsigned long long*>(to), value);
  }

 private:
  template <typename F, typename Combine>
  __device__ uint64_t reduced(int n, F f, Combine combine) const {
    return over_threads(
        [&] {
          uint64_t own = 0;
          for (int i = threadIdx.x; i < n; i += kThreads) own = combine(own, f(i));
          return own;
        },
        combine);
  }

  template <typename F, typename Combine>
  __device__ uint64_t over_threads(F f, Combine combine) const {
    __syncthreads();
    const uint64_t own = across(f(), combine);
    if (threadIdx.x % kWarp == 0) slots_[threadIdx.x / kWarp] = own;
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
    return across(lane < kThreads / kWarp ? slots_[lane] : 0, combine);
  }

  template <typename Combine>
  __device__ static uint64_t across(uint64_t own, Combine combine) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      own = combine(own, __shfl_xor_sync(kEveryLane, own, step));
    }
    return own;
  }

  Shared& shared_;
  uint64_t* slots_;  // one per warp
};

}  // namespace
}  // namespace fastdecode
