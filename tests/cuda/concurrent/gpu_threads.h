// What block.cuh asks of a GPU's thread, for a thread of the CPU that ThreadSanitizer watches. Each
// function orders memory as CUDA says and no more: shuffles and atomic operations order nothing, a
// barrier orders the block, and fences around an atomic operation order those who come later.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define __device__
#define __shared__

constexpr int kLanes = 32, kRing = 64, kWarps = 2, kThreadsOfBlock = kWarps * kLanes;

// Barriers at this line of block.cuh, and all fences, are left out, to see that it is reported.
inline int dropped_barrier = 0;
inline bool drops_fences = false;

// The shuffled values of a warp's last kRing shuffles, each in two words with its shuffle's number:
// a word that has the number has the half of the value.
struct Warp {
  uint64_t words[kRing][kLanes][2] = {};
};

struct BlockThreads {
  BlockThreads() { pthread_barrier_init(&barrier, nullptr, kThreadsOfBlock); }
  BlockThreads(const BlockThreads&) = delete;
  ~BlockThreads() { pthread_barrier_destroy(&barrier); }

  pthread_barrier_t barrier;
  Warp warps[kWarps];
};

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline thread_local BlockThreads* block_threads = nullptr;
inline thread_local uint32_t shuffles = 0;
inline thread_local bool released = false;      // since the last barrier, by a fence
inline thread_local uint32_t* added = nullptr;  // by this thread since the last barrier

inline void barrier_at(int line) {
  if (line == dropped_barrier) return;
  pthread_barrier_wait(&block_threads->barrier);
  released = false;
  added = nullptr;
}
#define __syncthreads() barrier_at(__LINE__)

inline void __threadfence() {
  if (drops_fences) return;
  released = true;
  if (added != nullptr) __atomic_load_n(added, __ATOMIC_ACQUIRE);
}

inline uint32_t atomicAdd(uint32_t* to, uint32_t value) {
  added = to;
  return released ? __atomic_fetch_add(to, value, __ATOMIC_RELEASE)
                  : __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline void atomicMax(unsigned long long* to, unsigned long long value) {
  unsigned long long before = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (before < value && !__atomic_compare_exchange_n(to, &before, value, false, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
  }
}

// The half of a lane's value in this shuffle, once the lane has got there.
inline uint64_t shuffled_half(uint64_t* word, uint32_t shuffle) {
  for (;;) {
    const uint64_t read = __atomic_load_n(word, __ATOMIC_RELAXED);
    if (read >> 32 == shuffle) return read & 0xffffffffu;
    if (read >> 32 > shuffle) {
      std::fputs("a lane is too many shuffles ahead of another\n", stderr);
      std::abort();
    }
    sched_yield();
  }
}

// The value that the lane gave; of a lane that does not exist, the thread's own.
inline uint64_t shuffled(uint64_t value, int from) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  auto& words = block_threads->warps[threadIdx.x / kLanes].words[++shuffles % kRing];
  const uint64_t number = uint64_t{shuffles} << 32;
  __atomic_store_n(&words[lane][0], number | (value & 0xffffffffu), __ATOMIC_RELAXED);
  __atomic_store_n(&words[lane][1], number | value >> 32, __ATOMIC_RELAXED);
  if (from < 0 || from >= kLanes) return value;
  const uint64_t low = shuffled_half(&words[from][0], shuffles);
  return shuffled_half(&words[from][1], shuffles) << 32 | low;
}

inline uint64_t __shfl_up_sync(unsigned, uint64_t value, int step) {
  return shuffled(value, static_cast<int>(threadIdx.x) % kLanes - step);
}

inline uint64_t __shfl_xor_sync(unsigned, uint64_t value, int step) {
  return shuffled(value, static_cast<int>(threadIdx.x) % kLanes ^ step);
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
