// Linear layers of few rows, their features shared out to threads.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// The kernels of cpu_isa().
const DecodeKernels& decode_kernels();

// Memory that the calling thread keeps from call to call, freed with it.
class Memory {
 public:
  ~Memory();
  // At least so many bytes, aligned to a cache line; null if there are none to be had.
  void* reserve(int64_t bytes);

 private:
  void* bytes_ = nullptr;
  int64_t size_ = 0;
};

// At most `limit` threads, and no more than pay for their waking: `bytes` are read and `work`
// multiplications done in all.
int useful_threads(int64_t bytes, int64_t work, int limit);

struct Linear {
  const void* weight;  // (features, k) dense
  const float* bias;   // (features,) or null
  int64_t features;
};

// Runs `count` linear layers, their weights of `dtype`, of one input (rows, k), dense. Their
// results lie side by side in `out`, or with `add` raise what lies there. False if there was no
// memory.
bool run_linears(const Linear* linears, int count, int dtype, const float* x, int64_t rows,
                 int64_t k, float* out, int64_t out_stride, bool add, int threads);

// Floats of an array, so that the next one begins at a cache line.
inline int64_t rounded_up(int64_t n) {
  return (n + 15) / 16 * 16;
}

// Bytes of a value of a fastdecode_dtype.
int64_t size_of(int dtype);

}  // namespace fastdecode
