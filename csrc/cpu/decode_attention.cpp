#include "cpu/decode_attention.h"

#include <algorithm>

#include "core/dtypes.h"
#include "core/sizes.h"
#include "cpu/decode_linear.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// A row's tokens are cut into stretches of this length. Each is attended to by itself, and then the
// results are joined. The length is fixed, so that a row's sums do not depend on the threads.
constexpr int64_t kStretch = 512;

}  // namespace

Attention::Attention(const Rows& rows, const DecodeKernels& kernels, int threads)
    : rows_(rows), kernels_(kernels), group_(rows.heads / rows.kv_heads), limit_(threads) {
  const double kv = static_cast<double>(rows.kv_heads * rows.head_dim);
  double stored = 0.0;  // keys and values that are read
  for (int64_t r = 0; r < rows.rows; ++r) {
    longest_ = std::max(longest_, tokens_of(r));
    stored += 2.0 * static_cast<double>(tokens_of(r)) * kv;
  }
  parts_ = std::max<int64_t>(longest_ + kStretch - 1, kStretch) / kStretch;
  scratch_stride_ = rounded_up(rows.head_dim + std::min(longest_, kStretch));
  attend_threads_ = useful_threads(stored * static_cast<double>(size_of(rows.dtype)),
                                   stored * static_cast<double>(group_), limit_);
  const double queries = static_cast<double>(rows.rows) * static_cast<double>(rows.heads);
  place_threads_ = useful_threads(0.0, queries * static_cast<double>(rows.head_dim) * 16.0, limit_);
}

int64_t Attention::floats() const {
  const double least = static_cast<double>(rows_.rows * rows_.heads) *
                       static_cast<double>(rows_.head_dim) * static_cast<double>(parts_);
  if (least > static_cast<double>(kMaxElements)) return INT64_MAX;  // the sums below could overflow
  const int64_t heads = rows_.rows * rows_.heads * parts_;
  return rounded_up(heads * rows_.head_dim) + 2 * rounded_up(heads) +
         rows_.rows * rows_.kv_heads * parts_ * scratch_stride_;
}

void Attention::use(float* memory) {
  const int64_t heads = rows_.rows * rows_.heads * parts_;
  part_ = memory;
  largest_ = part_ + rounded_up(heads * rows_.head_dim);
  sum_ = largest_ + rounded_up(heads);
  scratch_ = sum_ + rounded_up(heads);
}

template <void (Attention::*part)(int64_t)>
void Attention::share(int64_t items, int threads) {
  parallel_for(
      items, threads,
      [](void* self, int64_t item) { (static_cast<Attention*>(self)->*part)(item); }, this);
}

void Attention::place(const Heads& heads) {
  heads_ = &heads;
  share<&Attention::place_one>(rows_.rows * rows_.kv_heads, place_threads_);
}

void Attention::store(const Heads& heads) {
  heads_ = &heads;
  share<&Attention::store_one>(rows_.rows * rows_.kv_heads, place_threads_);
}

void Attention::attend(const Heads& heads) {
  heads_ = &heads;
  attend_and_join();
}

void Attention::place_and_attend(const Heads& heads, bool chained) {
  heads_ = &heads;
  const int64_t items = rows_.rows * rows_.kv_heads;
  if (parts_ == 1 && !chained) {
    share<&Attention::all_of_one>(items, attend_threads_);
    return;
  }
  // All are placed before any is attended to: rows may attend to what other rows place, and every
  // stretch needs what its row places.
  share<&Attention::place_one>(items, std::min(place_threads_, attend_threads_));
  attend_and_join();
}

void Attention::attend_and_join() {
  share<&Attention::attend_one>(rows_.rows * rows_.kv_heads * parts_, attend_threads_);
  share<&Attention::join_one>(rows_.rows * rows_.heads, attend_threads_);
}

char* Attention::at(void* storage, int64_t page, int64_t head, int64_t slot) const {
  const int64_t element =
      ((page * rows_.kv_heads + head) * rows_.page_slots + slot) * rows_.head_dim;
  return static_cast<char*>(storage) + element * size_of(rows_.dtype);
}

void Attention::place_one(int64_t item) {
  place_item(item, group_);
}

void Attention::store_one(int64_t item) {
  place_item(item, 0);
}

// One head's key and value of a row's new token, and `group` of its query heads.
void Attention::place_item(int64_t item, int64_t group) {
  const int64_t row = item / rows_.kv_heads, head = item % rows_.kv_heads, d = rows_.head_dim;
  const int64_t first = head * group_;  // the first of its query heads
  const int64_t token = tokens_of(row) - 1;
  const int64_t page = table_of(row)[token / rows_.page_slots], slot = token % rows_.page_slots;
  PlaceArgs args;
  args.head_dim = d;
  args.group = group;
  args.q = group == 0 ? nullptr : heads_->q + row * heads_->q_stride + first * d;
  args.k = heads_->k + row * heads_->kv_stride + head * d;
  args.v = heads_->v + row * heads_->kv_stride + head * d;
  args.q_norm = of_head(heads_->q_norm, first, d);
  args.k_norm = of_head(heads_->k_norm, head, d);
  args.cos = heads_->cos + row * d;
  args.sin = heads_->sin + row * d;
  args.key = at(heads_->keys, page, head, slot);
  args.value = at(heads_->values, page, head, slot);
  args.scratch = scratch_ + item * parts_ * scratch_stride_;
  kernels_.place[rows_.dtype](args);
}

void Attention::attend_one(int64_t item) {
  const int64_t part = item % parts_, row = item / parts_ / rows_.kv_heads;
  const int64_t head = item / parts_ % rows_.kv_heads, d = rows_.head_dim;
  AttendArgs args;
  args.begin = part * kStretch;
  args.end = std::min(args.begin + kStretch, tokens_of(row));
  if (args.begin >= args.end) return;
  args.head_dim = d;
  args.group = group_;
  args.q = heads_->q + row * heads_->q_stride + head * group_ * d;
  args.keys = at(heads_->keys, 0, head, 0);
  args.values = at(heads_->values, 0, head, 0);
  const bool beside = parts_ == 1 && head + 1 < rows_.kv_heads;  // then it is the next item's head
  args.beside = beside ? at(heads_->keys, 0, head + 1, 0) : nullptr;
  args.next = beside ? nullptr : first_keys(item + 1);
  args.fetched = parts_ == 1 && head > 0;
  args.table = table_of(row);
  args.page_slots = rows_.page_slots;
  args.page_stride = rows_.kv_heads * rows_.page_slots * d;
  args.scale = heads_->scale;
  args.scratch = scratch_ + item * scratch_stride_;
  // Ordered by part, row and head: the heads of a group lie side by side, and so does each part.
  const int64_t place = (part * rows_.rows + row) * rows_.heads + head * group_;
  args.out = part_ + place * d;
  args.largest = largest_ + place;
  args.sum = sum_ + place;
  kernels_.attend[rows_.dtype](args);
}

// The keys that item `item` of attend_one reads first; those of the last item where there is none.
const void* Attention::first_keys(int64_t item) const {
  item = std::min(item, rows_.rows * rows_.kv_heads * parts_ - 1);
  const int64_t row = item / parts_ / rows_.kv_heads, token = item % parts_ * kStretch;
  const int64_t page = token < tokens_of(row) ? table_of(row)[token / rows_.page_slots] : 0;
  return at(heads_->keys, page, item / parts_ % rows_.kv_heads, token % rows_.page_slots);
}

// Joins one query head of one row.
void Attention::join_one(int64_t item) {
  const int64_t stride = rows_.rows * rows_.heads, d = rows_.head_dim;
  const int64_t parts = (tokens_of(item / rows_.heads) - 1) / kStretch + 1;
  kernels_.join(part_ + item * d, stride * d, largest_ + item, sum_ + item, stride, parts, d,
                heads_->out + item * d);
}

void Attention::all_of_one(int64_t item) {
  place_one(item);
  attend_one(item);
  for (int64_t g = 0; g < group_; ++g) join_one(item * group_ + g);
}

}  // namespace fastdecode
