// `sample` for sets that fit into a block's shared memory: one block per group, one launch. Each
// logit of the set is read once; with contrast, those of the first stream twice.
#pragma once

#include "cuda/ids.h"
#include "cuda/result.h"
#include "cuda/search.h"

namespace fastdecode {
namespace {

// Steps 5 and 6: the smallest key that top-k and top-p keep.
template <class Block>
FASTDECODE_DEVICE uint32_t filter(Block& block, const Group& g, const float* z, int n, float top) {
  const uint32_t hi = order_key(top);
  uint32_t lo = kLeastKey;
  if (g.top_k > 0) {
    const uint64_t k = static_cast<uint64_t>(g.top_k);
    lo = weighted_cut(block, z, n, lo, hi, CountOf{},
                      [&](uint64_t total) { return k < total ? k : 0; });
  }
  if (g.top_p < 1.0f) {
    const uint32_t with_mass = order_key(top + kNoMass);
    lo = weighted_cut(block, z, n, lo > with_mass ? lo : with_mass, hi, MassOf{top},
                      [&](uint64_t total) { return top_p_limit(g.top_p, total); });
  }
  return lo;
}

// Samples group g from the set and writes element g.number of the outputs: the answer, or the
// status that says why there is none. A set of more than `capacity` tokens, which is what
// block.values() holds, is refused.
template <typename T, class Block>
FASTDECODE_DEVICE void sample_small(Block& block, const fastdecode_sample_args& a, const Group& g,
                                    const Set& set, int32_t capacity) {
  float* z = block.values();
  const Streams<T> streams(a, g.number);
  Ids<Block> ids(block, set);
  const int32_t n = ids.size();
  const auto fail = [&](int32_t status) { block.once([&] { write_none(a, g.number, status); }); };
  if (!ids.bad() && n == 0) return fail(FASTDECODE_STATUS_EMPTY_SET);
  if (ids.bad() || n > capacity || g.bad || streams.bad()) {
    return fail(FASTDECODE_STATUS_INVALID_LOGITS);
  }

  const auto read = [&](int32_t id) { return streams.read(id); };
  Contrast contrast = {false, 0.0f, 0.0f};
  if (a.contrast_k > 0) {
    const uint64_t key = ids.max(0, n, read, [&](int32_t i, int32_t, const Read<T>& r) -> uint64_t {
      z[i] = streams.expert(r);
      return z[i] > -kInf ? order_key(z[i]) : 0;
    });
    if (key == 0) return fail(FASTDECODE_STATUS_INVALID_LOGITS);
    const uint64_t k = static_cast<uint64_t>(a.contrast_k);
    const uint32_t hi = static_cast<uint32_t>(key);
    const uint32_t kth = weighted_cut(block, z, n, kLeastKey, hi, CountOf{},
                                      [&](uint64_t total) { return k < total ? k : total; });
    contrast = contrast_from(a.contrast_alpha, float_of_key(hi), float_of_key(kth));
  }

  const uint64_t best =
      ids.max(0, n, read, [&](int32_t i, int32_t id, const Read<T>& r) -> uint64_t {
        const Valued v = value_of_id(streams, g, contrast, id, r);
        z[i] = v.z;
        return v.wrong ? kWrong : v.z > -kInf ? order_key(v.z) : 0;
      });
  if (best == 0 || best == kWrong) return fail(FASTDECODE_STATUS_INVALID_LOGITS);
  const float top = float_of_key(static_cast<uint32_t>(best));

  if (g.greedy()) {
    const uint64_t rank =
        block.max(n, [&](int i) { return z[i] == top ? rank_of(0.0f, i) : uint64_t{0}; });
    const int32_t id = ids.at(place_of(rank));
    block.once([&] { write_certain(a, g.number, id); });
    return;
  }

  const float cut = float_of_key(filter(block, g, z, n, top));
  const uint64_t mass = block.sum(n, [&](int i) -> uint64_t {
    const float p = z[i] >= cut ? exp_f32(z[i] - top) : -1.0f;
    if (p >= g.min_p) return static_cast<uint64_t>(mass_of(p));
    z[i] = -kInf;
    return 0;
  });
  const uint64_t kept = block.sum(n, [&](int i) { return uint64_t{z[i] > -kInf}; });
  const uint64_t rank = ids.max(
      0, n, [&](int32_t) { return true; },
      [&](int32_t i, int32_t id, bool) {
        return z[i] > -kInf ? rank_of(z[i] + noise_of(g, id), i) : uint64_t{0};
      });
  const int32_t place = place_of(rank), id = ids.at(place);
  const float logprob = logprob_of(z[place], top, mass);
  block.once(
      [&] { write(a, g.number, id, logprob, static_cast<int32_t>(kept), FASTDECODE_STATUS_OK); });
}

}  // namespace
}  // namespace fastdecode
