// The arithmetic of a decode step in float32, one set of functions per instruction set.
//
// Every sum has a fixed order that depends on the lengths summed over and nothing else: a row's
// results are the same bits alone or among any others, on any number of threads. Between
// instruction sets the last bits differ.
//
// Plain C types only, since this header is included by units built for different instruction sets.
#pragma once

#include <stdint.h>

namespace fastdecode {

// One new id of one row, for one head of keys and the `group` query heads that share it.
struct AttendArgs {
  int64_t head_dim, group, length;  // length: ids stored before this one
  float* q;                         // (group, head_dim) projected; normed and rotated in place
  const float *k, *v;               // (head_dim,) projected
  const float *q_weight, *q_bias;   // (group, head_dim) of the heads' norms
  const float *k_weight, *k_bias;   // (head_dim,)
  const float *cos, *sin;           // (head_dim,) of the position; the first half of sin negated
  float *keys, *values;             // (length + 1, head_dim): the last is written here
  const float* next_keys;           // what will be read after this: fetched, never read here
  float scale;
  float* scratch;  // head_dim + length + 1 floats
  float* out;      // (group, head_dim)
};

struct DecodeKernels {
  // out = x / sqrt(mean(x^2) + epsilon) * weight, n values; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t n, float* out);

  // Features [lo, hi) of a linear layer for all rows: out[r * out_stride + f] is, or with `add` is
  // raised by, x[r] . weight[f] + bias[f]. `weight` is (features, k) dense; `bias` may be null.
  void (*linear)(const float* weight, const float* bias, const float* x, int64_t x_stride,
                 int64_t rows, int64_t k, int64_t lo, int64_t hi, float* out, int64_t out_stride,
                 bool add);

  // gate = gate / (1 + exp(-gate)) * up, n values.
  void (*silu_multiply)(float* gate, const float* up, int64_t n);

  // Norms (layer norm of each head) and rotates queries and key, appends key and value, attends.
  void (*attend)(const AttendArgs& args);
};

extern const DecodeKernels decode_kernels_portable;
#if defined(FASTDECODE_X86)
extern const DecodeKernels decode_kernels_avx2;
extern const DecodeKernels decode_kernels_avx512;
#endif

}  // namespace fastdecode
