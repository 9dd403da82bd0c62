// The operations of a decode step that treat each row by itself. Threads share the rows.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// out (rows, n) = RMS norms of x (rows, n); out may be x. With `residual` (rows, n), the norms of
// sum = x + residual, which is stored too; sum may be x or residual, and out may be sum.
struct NormRows {
  const DecodeKernels& kernels;
  const float *x, *residual, *weight;
  float epsilon;
  int64_t n;
  float *sum, *out;
};
void norm_rows(const NormRows& args, int64_t rows, int threads);

// gate_up (rows, 2 * inner): out (rows, inner) = activation(first half) * second half.
struct GateRows {
  const DecodeKernels& kernels;
  int64_t activation;  // fastdecode_activation
  const float* gate_up;
  int64_t inner;
  float* out;
};
void gate_rows(const GateRows& args, int64_t rows, int threads);

// out (rows, n) = weight[tokens], where weight (vocab, n) is stored as `how` says.
struct EmbedRows {
  const DecodeKernels& kernels;
  const int64_t* tokens;
  const void* weight;
  fastdecode_weights how;
  int64_t n;
  float* out;
};
void embed_rows(const EmbedRows& args, int64_t rows, int threads);

}  // namespace fastdecode
