// Linear layers of few rows. Threads share the features.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// The kernels for the instruction set cpu_isa().
const DecodeKernels& decode_kernels();

// `limit`, or 1 if the work is too small to be worth waking other threads: `bytes` are read in all,
// and `work` multiplications done. Not integers: their product could overflow.
int useful_threads(double bytes, double work, int limit);

struct Linear {
  const void* weight;  // (features, k) dense
  const float* bias;   // (features,) or null
  int64_t features;
  fastdecode_weights how;
};

// Dense weights of a fastdecode_dtype.
inline fastdecode_weights dense(int dtype) {
  return {dtype, 0, nullptr, nullptr, 0};
}

// Runs `count` linear layers on one dense input (rows, k). Writes their results side by side to
// `out` or, with `add`, adds them to what `out` holds. False if there was no memory.
bool run_linears(const Linear* linears, int count, const float* x, int64_t rows, int64_t k,
                 float* out, int64_t out_stride, bool add, int threads);

}  // namespace fastdecode
