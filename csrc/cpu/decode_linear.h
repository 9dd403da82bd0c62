// Linear layers of few rows in float32, their features shared out to threads.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// The kernels of cpu_isa().
const DecodeKernels& decode_kernels();

// At most `limit` threads, and no more than pay for their waking: `bytes` are read and `work`
// multiplications done in all.
int useful_threads(int64_t bytes, int64_t work, int limit);

struct Linear {
  const float *weight, *bias;  // (features, k) dense, (features,) or null
  int64_t features;
};

// Runs `count` linear layers of one input (rows, k), dense. Their results lie side by side in
// `out`, or with `add` raise what lies there.
void run_linears(const Linear* linears, int count, const float* x, int64_t rows, int64_t k,
                 float* out, int64_t out_stride, bool add, int threads);

}  // namespace fastdecode
