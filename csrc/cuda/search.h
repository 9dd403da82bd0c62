// The search of a block for the thresholds of top-k and top-p: histograms give an order key, 11
// bits at a time. The sums are of integers, so the order of additions does not matter.
#pragma once

#include "core/numerics.h"
#include "cuda/block.h"

namespace fastdecode {
namespace {

constexpr uint32_t kLeastKey = 0x00800000u;  // of the smallest finite float32

struct Found {
  int32_t at;
  uint64_t before;  // sum of the weights before it
};

// The first of n weights at which the running sum reaches the limit; n if it never does.
template <class Block, typename Weight>
FASTDECODE_DEVICE Found first_reaching(Block& block, int n, uint64_t limit, Weight weight) {
  uint64_t* found = block.shared().found;
  block.once([&] { found[0] = n; });
  block.prefix(n, weight, [&](int i, uint64_t before) {
    if (before < limit && limit - before <= weight(i)) {
      found[0] = i;
      found[1] = before;
    }
  });
  return {static_cast<int32_t>(found[0]), found[1]};
}

// Adds to a sum of 64 bits in two words: atomic additions of 32 bits are much faster.
template <class Block>
FASTDECODE_DEVICE void add_wide(Block& block, uint32_t* low, uint32_t* high, uint64_t value) {
  const uint32_t part = static_cast<uint32_t>(value);
  const uint32_t carry = block.add(low, part) > 0xffffffffu - part ? 1 : 0;
  const uint32_t rest = static_cast<uint32_t>(value >> 32) + carry;
  if (rest != 0) block.add(high, rest);
}

// The largest key c in [lo, hi] such that the z with keys in [c, hi] weigh at least the limit. The
// limit is limit_of(total), where total is the weight of the z with keys in [lo, hi], and at most
// total. If the limit is 0, the result is lo.
template <class Block, typename Weight, typename Limit>
FASTDECODE_DEVICE uint32_t weighted_cut(Block& block, const float* z, int n, uint32_t lo,
                                        uint32_t hi, Weight weight, Limit limit_of) {
  Shared& s = block.shared();
  const auto bin = [&](int b) { return static_cast<uint64_t>(s.high[b]) << 32 | s.low[b]; };
  uint64_t limit = 0;
  for (int shift = 32;;) {
    const int before = shift;
    for (shift = 0; (hi - lo) >> shift >= kBins;) ++shift;
    block.each(kBins, [&](int b) { s.low[b] = s.high[b] = 0; });
    block.each(n, [&](int i) {
      const float x = z[i];
      const uint32_t key = order_key(x);
      if (key < lo || key > hi) return;
      const uint64_t w = weight(x);
      if (w == 0) return;
      const uint32_t b = (hi - key) >> shift;
      add_wide(block, &s.low[b], &s.high[b], w);
    });
    if (before == 32) limit = limit_of(block.sum(kBins, bin));
    if (limit == 0) return lo;
    const Found found = first_reaching(block, kBins, limit, bin);
    limit -= found.before;
    hi -= static_cast<uint32_t>(found.at) << shift;
    const uint32_t width = (1u << shift) - 1u;
    lo = hi - lo > width ? hi - width : lo;
    if (shift == 0) return hi;
  }
}

struct CountOf {
  FASTDECODE_DEVICE uint64_t operator()(float) const { return 1; }
};

struct MassOf {
  float top;
  FASTDECODE_DEVICE uint64_t operator()(float z) const {
    return static_cast<uint64_t>(mass_of(exp_f32(z - top)));
  }
};

}  // namespace
}  // namespace fastdecode
