// The arithmetic of a decode step, one table of functions per instruction set. Weights, keys and
// values are float32, bfloat16 or float16; all else, also every sum, is float32.
//
// The order of a sum's additions depends only on the number of its terms. So a row's results are
// the same bits whatever the other rows and the number of threads. Between instruction sets the
// last bits differ.
//
// Units built for different instruction sets include this header, so it has only plain C types.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

constexpr int kFeatures = 4;  // of a tile of a linear layer

// From so many rows on, layers are multiplied in blocks of so many features where the processor has
// AVX2, or products of bfloat16.
constexpr int kManyRows = 13, kBlockFeatures = 16;

// How many ways there are of storing weights: fastdecode_weight_type.
constexpr int kLinears = 8;

// How many activations there are: fastdecode_activation.
constexpr int kActivations = 3;

// Rows of x rounded to int8 for weights of 8 bits and less. Each block of kBlock values (the last
// one filled up with zeros) has a factor, its largest magnitude / 127, and its values are x /
// factor rounded to the nearest, ties to even. A block whose largest magnitude is below 2^-100
// counts as zeros; one with infinity or NaN makes the results NaN. Blocks are read in pieces.
constexpr int kBlock = 256;
constexpr int kPiece = 64;
constexpr int kPanel = 16;  // features that lie side by side, for those weights
constexpr int kUnit = 32;   // values whose sum is kept, for weights in panels
constexpr int kSums = 16;   // of four values each in a piece
struct RoundedRows {
  int64_t blocks;  // of a row
  int8_t* values;  // (rows, blocks, kBlock)
  float* scale;    // (rows, blocks)
  int32_t* sums;   // (rows, blocks, kBlock / kUnit)
};

// Features [lo, hi) of a linear layer for all rows (of one in panels, of `weight` with the features
// that are skipped, from the start of a panel on): out[r * out_stride + f] = x[r] . weight[f] +
// bias[f]. With `add` the result is added to what `out` holds.
struct LinearArgs {
  const void* weight;  // (features, k) dense
  fastdecode_weights how;
  const float* bias;  // (features,) or null
  // (rows, k) dense: float32, or what DecodeKernels::round makes of it; for weights of 8 bits or
  // less a RoundedRows
  const void* x;
  int64_t rows, k, lo, hi;
  float* out;
  int64_t out_stride;
  bool add;
};

// The norms of heads. Weight and bias: layer norms; weight alone: RMS norms; neither: none.
struct HeadNorm {
  const float *weight, *bias;  // (heads, head_dim)
  float epsilon;
};

namespace {  // each unit has a copy of its own

// The norms of the heads from `head` on.
inline HeadNorm of_head(const HeadNorm& norm, int64_t head, int64_t head_dim) {
  const int64_t skipped = head * head_dim;
  return {norm.weight != nullptr ? norm.weight + skipped : nullptr,
          norm.bias != nullptr ? norm.bias + skipped : nullptr, norm.epsilon};
}

}  // namespace

// The new token of one row, for one head of keys and the `group` query heads that share it: norms
// and rotates the queries and the key, and stores key and value.
struct PlaceArgs {
  int64_t head_dim, group;
  float* q;                 // (group, head_dim) projected; normed and rotated in place
  const float *k, *v;       // (head_dim,) projected
  HeadNorm q_norm, k_norm;  // of these heads
  const float *cos, *sin;   // (head_dim,) of the token's position; the first half of sin negated
  void *key, *value;        // (head_dim,) out
  float* scratch;           // head_dim floats
};

// Attention of the `group` query heads of one head of keys to tokens [begin, end) of a row.
struct AttendArgs {
  int64_t head_dim, group, begin, end;
  const float* q;             // (group, head_dim)
  const void *keys, *values;  // of this head in page 0: (page_slots, head_dim)
  const void* next;           // keys to fetch meanwhile, which are attended to after these; or null
  const void* beside;    // the next head's keys in page 0, to be fetched at these tokens; or null
  bool fetched;          // whether this head's keys were
  const int32_t* table;  // the row's page table
  int64_t page_slots, page_stride;  // page_stride: elements from a page to the next
  float scale;
  float* scratch;        // end - begin floats, rounded up to 16
  float* out;            // (group, head_dim) sum of exp(score - largest) * value
  float *largest, *sum;  // (group,) of the scores, and of the exponentials
};

// Arrays are indexed by fastdecode_dtype.
struct DecodeKernels {
  // out = x / sqrt(mean(x^2) + epsilon) * weight, n values; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t n, float* out);

  void (*linear[kLinears])(const LinearArgs& args);  // by fastdecode_weight_type
  // If not null, linear[FASTDECODE_BFLOAT16] takes x in bfloat16, and this rounds n values to that.
  void (*round)(const float* x, int64_t n, uint16_t* out);
  // Rounds one row (k,) of x.
  void (*round_to_int8)(const float* x, int64_t k, const RoundedRows& out, int64_t row);

  // out = activation(gate) * up, n values; out may be gate or up. By fastdecode_activation.
  void (*gate[kActivations])(const float* gate, const float* up, int64_t n, float* out);

  // out = from in float32, n values.
  void (*widen[3])(const void* from, int64_t n, float* out);

  void (*place[3])(const PlaceArgs& args);
  void (*attend[3])(const AttendArgs& args);

  // Attention of one query head to a whole row, from that to each of its `parts` stretches: stretch
  // i has written parts_out + i * out_stride, largest[i * stride] and sum[i * stride].
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
