// What a kernel sees of the block of threads that runs it. The kernels are templates over this, so
// that the same lines run on a GPU (block.cuh) and, thread by thread, in a test on the CPU:
//
//   int64_t index()                  the block's number in its launch
//   void each(int n, f)              f(i) for all i < n
//   uint64_t sum(int n, f)           of f(i) over all i < n
//   uint64_t max(int n, f)           the largest f(i); 0 if n is 0
//   uint64_t max_of(int n, l, f)     the largest f(i, l(i)), a few l(i) before the first f
//   uint64_t prefix(int n, f, to)    to(i, f(0) + ... + f(i - 1)) for all i < n; the sum of all
//   void once(f)                     f() in one thread
//   bool last(uint32_t* n, of)       whether this block is the last of so many to ask, by the count
//                                    *n from 0 on: it sees all that the others wrote before
//   add(T* to, T value)              atomic, inside of these; what was there before
//   raise(uint64_t* to, value)       atomic: to the value, if that is larger
//   Shared& shared()                 of the block
//   float* values()                  shared too; as many as the launch asked for
//
// Code outside of these functions runs in every thread alike and writes nothing. Each of them
// begins and ends with a barrier, so nothing that one reads or writes can meet the next.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define FASTDECODE_DEVICE __device__
#else
#define FASTDECODE_DEVICE
#endif

namespace fastdecode {

constexpr int kBins = 2048;    // of a search: 11 bits of a key at a time
constexpr int kRanges = 1024;  // of a set, whose ids are enumerated together

struct Shared {
  uint32_t low[kBins], high[kBins];  // of sums, see add_wide
  int32_t starts[kRanges], lows[kRanges];
  uint64_t found[2];
};

}  // namespace fastdecode
