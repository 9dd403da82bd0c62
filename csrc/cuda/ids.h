// The ids of a set by their positions, 0 for the least, shared out to the threads of a block.
#pragma once

#include "cuda/group.h"

namespace fastdecode {
namespace {

template <class Block>
class Ids {
 public:
  // Counts the ids, and looks whether the ranges are what they should be.
  FASTDECODE_DEVICE Ids(Block& block, const Set& set) : block_(block), set_(set) {
    const int32_t first = set.first, count = set.last - set.first;
    bad_ = set.bad || block.max(count, [&](int i) { return set.wrong(first + i) ? 1u : 0u; }) != 0;
    if (bad_) return;
    size_ = static_cast<int32_t>(block.sum(
        count, [&](int i) { return uint64_t(set.high(first + i) - set.low(first + i)); }));
  }

  FASTDECODE_DEVICE bool bad() const { return bad_; }
  FASTDECODE_DEVICE int32_t size() const { return size_; }

  // The largest f(position, id).
  template <typename F>
  FASTDECODE_DEVICE uint64_t max(F f) {
    uint64_t largest = 0;
    int32_t from = 0;
    for (int32_t r = set_.first; r < set_.last; r += kRanges) {
      const Batch b = batch(r);
      const uint64_t here = block_.max(b.size, [&](int i) { return f(from + i, id_in(b, i)); });
      largest = here > largest ? here : largest;
      from += b.size;
    }
    return largest;
  }

  FASTDECODE_DEVICE int32_t at(int32_t position) {
    int32_t from = 0;
    for (int32_t r = set_.first; r < set_.last; r += kRanges) {
      const Batch b = batch(r);
      if (position - from < b.size) return id_in(b, position - from);
      from += b.size;
    }
    return -1;
  }

 private:
  struct Batch {
    int32_t ranges, size;
  };

  // Lists ranges from r on, and where the ids of each begin.
  FASTDECODE_DEVICE Batch batch(int32_t r) {
    Shared& s = block_.shared();
    const int32_t n = set_.last - r < kRanges ? set_.last - r : kRanges;
    const uint64_t size = block_.prefix(
        n, [&](int i) { return uint64_t(set_.high(r + i) - set_.low(r + i)); },
        [&](int i, uint64_t before) {
          s.starts[i] = static_cast<int32_t>(before);
          s.lows[i] = set_.low(r + i);
        });
    return {n, static_cast<int32_t>(size)};
  }

  FASTDECODE_DEVICE int32_t id_in(const Batch& b, int32_t i) const {
    const Shared& s = block_.shared();
    int32_t at = 0, behind = b.ranges;  // the last range that begins at or before i
    while (behind - at > 1) {
      const int32_t middle = (at + behind) / 2;
      if (s.starts[middle] <= i) {
        at = middle;
      } else {
        behind = middle;
      }
    }
    return s.lows[at] + (i - s.starts[at]);
  }

  Block& block_;
  const Set& set_;
  int32_t size_ = 0;
  bool bad_ = false;
};

}  // namespace
}  // namespace fastdecode
