// The arithmetic of a decode step, one set of functions per instruction set. Weights, keys and
// values are float32, bfloat16 or float16; everything else, sums among it, is float32.
//
// Every sum has a fixed order that depends on the lengths summed over and nothing else: a row's
// results are the same bits alone or among any others, on any number of threads. Between
// instruction sets the last bits differ.
//
// Plain C types only, since this header is included by units built for different instruction sets.
#pragma once

#include <stdint.h>

namespace fastdecode {

// Features [lo, hi) of a linear layer for all rows: out[r * out_stride + f] is, or with `add` is
// raised by, x[r] . weight[f] + bias[f].
struct LinearArgs {
  const void* weight;  // (features, k) dense
  const float* bias;   // (features,) or null
  const void* x;       // (rows, k) dense: float32, or bfloat16 where DecodeKernels::round is there
  int64_t rows, k, lo, hi;
  float* out;
  int64_t out_stride;
  bool add;
};

// A head's norm: weight and bias null: none; bias null: RMS norm; else layer norm.
struct HeadNorm {
  const float *weight, *bias;  // (heads, head_dim)
  float epsilon;
};

// One new id of one row, for one head of keys and the `group` query heads that share it: its
// queries and key are normed and rotated, key and value stored.
struct PlaceArgs {
  int64_t head_dim, group;
  float* q;            // (group, head_dim) projected; normed and rotated in place
  const float *k, *v;  // (head_dim,) projected
  HeadNorm q_norm, k_norm;
  const float *cos, *sin;  // (head_dim,) of the position; the first half of sin negated
  void *key, *value;       // (head_dim,) out
  float* scratch;          // head_dim floats
};

// Ids [begin, end) of a row's pages, as the `group` query heads of one head of keys see them.
struct AttendArgs {
  int64_t head_dim, group, begin, end;
  const float* q;                   // (group, head_dim)
  const void *keys, *values;        // of this head in page 0: (page_slots, head_dim)
  const int32_t* table;             // the row's pages
  int64_t page_slots, page_stride;  // page_stride: elements from a page to the next
  float scale;
  float* scratch;        // end - begin floats
  float* out;            // (group, head_dim) sum of exp(score - largest) * value
  float *largest, *sum;  // (group,) of the scores, and of the exponentials
};

// Indexed by fastdecode_dtype.
struct DecodeKernels {
  // out = x / sqrt(mean(x^2) + epsilon) * weight, n values; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t n, float* out);

  void (*linear[3])(const LinearArgs& args);
  // Rounds n values to bfloat16, which linear[FASTDECODE_BFLOAT16] wants x in; null: it does not.
  void (*round)(const float* x, int64_t n, uint16_t* out);

  // out = gate / (1 + exp(-gate)) * up, n values; out may be gate or up.
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* out);

  // out = from, n values.
  void (*widen[3])(const void* from, int64_t n, float* out);

  void (*place[3])(const PlaceArgs& args);
  void (*attend[3])(const AttendArgs& args);

  // Joins what `parts` stretches of a row gave one query head: out (head_dim,) from part i's
  // out + i * out_stride, largest[i * stride] and sum[i * stride].
  void (*join)(const float* parts_out, int64_t out_stride, const float* largest, const float* sum,
               int64_t stride, int64_t parts, int64_t head_dim, float* out);
};

extern const DecodeKernels decode_kernels_portable;
#if defined(FASTDECODE_X86)
extern const DecodeKernels decode_kernels_avx2;
extern const DecodeKernels decode_kernels_avx512;
extern const DecodeKernels decode_kernels_avx512bf16;
#endif

}  // namespace fastdecode
