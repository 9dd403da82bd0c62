// The attention of one layer for few rows. Threads share the heads.
#pragma once

#include <stdint.h>

#include "cpu/decode_kernels.h"

namespace fastdecode {

// Row r has the tokens [0, lengths[r] + fresh). With fresh = 1 the last token is new, and `place`
// may store it.
struct Rows {
  int64_t rows, heads, kv_heads, head_dim;
  int dtype;
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  const int64_t* lengths;
  int64_t fresh;
};

// The rows of any call with pages.
template <typename Args>
Rows rows_of(const Args& a, int64_t fresh) {
  return {a.rows,       a.heads, a.kv_heads,     a.head_dim, a.dtype,
          a.page_slots, a.table, a.table_stride, a.lengths,  fresh};
}

// The queries, keys and values of one layer. Those of row r begin r * stride after those of row 0.
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

  // Floats of working memory that it needs, which `use` gives it. More than kMaxElements: there
  // is not so much.
  int64_t floats() const;
  void use(float* memory);

  // The threads that are of use for it: the limit, or 1.
  int threads() const { return attend_threads_; }
  // Norms and rotates the new tokens' queries in place, and stores their keys and values.
  void place(const Heads& heads);
  // Stores the new tokens' keys and values, and leaves the queries alone.
  void store(const Heads& heads);
  // Attention of each row's queries to the tokens in its pages.
  void attend(const Heads& heads);
  // Both. With `chained`, rows may attend to tokens that other rows place.
  void place_and_attend(const Heads& heads, bool chained);

 private:
  template <void (Attention::*part)(int64_t)>
  void share(int64_t items, int threads);
  void place_one(int64_t item);
  void store_one(int64_t item);
  void place_item(int64_t item, int64_t group);
  void attend_one(int64_t item);
  void join_one(int64_t item);
  void all_of_one(int64_t item);
  const void* first_keys(int64_t item) const;
  void attend_and_join();
  int64_t tokens_of(int64_t row) const { return rows_.lengths[row] + rows_.fresh; }
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
