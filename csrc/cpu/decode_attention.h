// The attention of one layer of few rows, its heads shared out to threads.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// Row r's ids are [0, lengths[r] + fresh). With fresh = 1 the last of them is new, and may be
// placed.
struct Rows {
  int64_t rows, heads, kv_heads, head_dim;
  int dtype;
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  const int64_t* lengths;
  int64_t fresh;
};

// Of one layer. Row r's queries, key and value begin r * stride behind those of row 0.
struct Heads {
  void *keys, *values;  // (pages, kv_heads, page_slots, head_dim)
  float* q;             // (heads, head_dim) of each row
  int64_t q_stride;
  const float *k, *v;  // (kv_heads, head_dim) of each row
  int64_t kv_stride;
  HeadNorm q_norm, k_norm;
  const float *cos, *sin;  // (rows, head_dim)
  float scale;
  float* out;  // (rows, heads, head_dim)
};

class Attention {
 public:
  Attention(const Rows& rows, const DecodeKernels& kernels, int threads);

  // Floats of memory that it works in.
  int64_t floats() const;
  void use(float* memory);

  // Norms and rotates the new ids' queries in place, and stores their keys and values.
  void place(const Heads& heads);
  // What the queries find in their rows' pages.
  void attend(const Heads& heads);
  // Both. With `chained` rows may see what others place.
  void place_and_attend(const Heads& heads, bool chained);

 private:
  template <void (Attention::*part)(int64_t)>
  void share(int64_t items, int threads);
  void place_one(int64_t item);
  void attend_one(int64_t item);
  void join_one(int64_t item);
  void all_of_one(int64_t item);
  void attend_and_join();
  int64_t seen(int64_t row) const { return rows_.lengths[row] + rows_.fresh; }
  const int32_t* table_of(int64_t row) const { return rows_.table + row * rows_.table_stride; }
  char* at(void* storage, int64_t page, int64_t head, int64_t slot) const;

  const Rows rows_;
  const DecodeKernels& kernels_;
  const int64_t group_;  // query heads to a head of keys
  int64_t longest_ = 0, parts_ = 1, scratch_stride_ = 0;
  int limit_, attend_threads_ = 1, place_threads_ = 1;
  const Heads* heads_ = nullptr;
  float *part_ = nullptr, *largest_ = nullptr, *sum_ = nullptr, *scratch_ = nullptr;
};

}  // namespace fastdecode
