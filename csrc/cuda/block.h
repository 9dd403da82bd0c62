// What a kernel knows of the block of threads that runs it. Each kernel is a template over the
// class of the block, so that the same lines run on a GPU (block.cuh) and, thread by thread, in a
// test on the CPU. The class has:
//
//   int64_t index()                  the block's number in its launch
//   void each(int n, f)              calls f(i) for all i < n
//   uint64_t sum(int n, f)           the sum of f(i) over all i < n
//   uint64_t max(int n, f)           the largest f(i); 0 if n is 0
//   uint64_t max_of(int n, l, f)     the largest f(i, l(i)); a thread calls l for a few i before f
//   uint64_t prefix(int n, f, to)    calls to(i, f(0) + ... + f(i - 1)) for all i < n; returns the
//                                    sum of all f(i)
//   void once(f)                     calls f() in one thread
//   bool last(uint32_t* n, of)       true in the last of `of` blocks to call it, which then sees
//   all
//                                    that the others wrote before; *n counts the calls, from 0 on
//   add(T* to, T value)              atomic addition, inside of f or to; returns the old value
//   raise(uint64_t* to, value)       atomic maximum, inside of f or to
//   Shared& shared()                 the block's shared memory
//   float* values()                  more shared memory: as many floats as the launch asked for
//
// Code outside of f, l and to runs in every thread with the same values, and writes no memory. Each
// function begins and ends with a barrier, so that its reads and writes cannot race with the next
// one's.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define FASTDECODE_DEVICE __device__
#else
#define FASTDECODE_DEVICE
#endif

namespace fastdecode {

constexpr int kBins = 2048;    // of a search, which takes 11 bits of a key at a time
constexpr int kRanges = 1024;  // of a set that are in shared memory together

struct Shared {
  uint32_t low[kBins], high[kBins];  // of sums, see add_wide
  int32_t starts[kRanges], lows[kRanges];
  uint64_t found[2];
};

}  // namespace fastdecode
