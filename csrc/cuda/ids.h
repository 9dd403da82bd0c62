// The tokens of a set by their positions: the smallest token has position 0. The threads of a block
// share them.
#pragma once

#include "cuda/group.h"

namespace fastdecode {
namespace {

template <class Block>
class Ids {
 public:
  // Counts the tokens, and checks the ranges.
  FASTDECODE_DEVICE Ids(Block& block, const Set& set) : block_(block), set_(set) {
    const int32_t first = set.first, count = set.last - set.first;
    bad_ = set.bad || block.max(count, [&](int i) { return set.wrong(first + i) ? 1u : 0u; }) != 0;
    if (bad_) return;
    size_ = static_cast<int32_t>(block.sum(
        count, [&](int i) { return uint64_t(set.high(first + i) - set.low(first + i)); }));
  }

  FASTDECODE_DEVICE bool bad() const { return bad_; }
  FASTDECODE_DEVICE int32_t size() const { return size_; }

  // For a set that was checked before, and has so many tokens.
  FASTDECODE_DEVICE Ids(Block& block, const Set& set, int32_t size)
      : block_(block), set_(set), size_(size) {}

  // The largest use(position, token, load(token)) of the positions [first, last). A thread loads a
  // few tokens before it uses the first of them, so that it waits for memory once.
  template <typename Load, typename Use>
  FASTDECODE_DEVICE uint64_t max(int32_t first, int32_t last, Load load, Use use) {
    uint64_t largest = 0;
    int32_t from = 0;
    for (int32_t r = set_.first; r < set_.last && from < last; r += kRanges) {
      const Batch b = batch(r);
      const int32_t begin = first > from ? first - from : 0;
      const int32_t end = last - from < b.size ? last - from : b.size;
      if (begin < end) {
        const uint64_t here = block_.max_of(
            end - begin,
            [&](int i) {
              const int32_t id = id_in(b, begin + i);
              return loaded(id, load(id));
            },
            [&](int i, const auto& l) { return use(from + begin + i, l.id, l.value); });
        largest = here > largest ? here : largest;
      }
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
  template <typename V>
  struct Loaded {
    int32_t id;
    V value;
  };
  template <typename V>
  FASTDECODE_DEVICE static Loaded<V> loaded(int32_t id, V value) {
    return {id, value};
  }

  struct Batch {
    int32_t ranges, size;
  };

  // Copies up to kRanges ranges, from r on, to shared memory, with each one's first position.
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
