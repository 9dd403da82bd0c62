// The cuts of top-k and top-p in sets that several blocks share; part of sample_large.h.
//
//   count  adds up the number and the mass of the z at each depth below the group's top; the last
//          block finds the depths in which the cuts must lie
//   list   lists the z at these depths; the last block finds the exact cuts among them
//
// Depths spread the z of a distribution evenly, which order keys do not: of 65,536 z, a few hundred
// are listed. The sums are of integers, so the order of additions does not matter, and neither does
// the order of the list. If all z lie at one depth, the list holds all of them: slower, but right.
#pragma once

#include "cuda/sample_large.h"
#include "cuda/search.h"

namespace fastdecode {
namespace {

// 0 for the top, and larger for smaller z <= top: the upper bits of top - z + 2 as a float.
FASTDECODE_DEVICE inline uint32_t depth_of(float z, float top) {
  const uint32_t depth = (float_bits((top - z) + 2.0f) - 0x40000000u) >> 16;
  return depth < kDepths ? depth : kDepths - 1;
}

// The filters of a group.
struct Filters {
  uint64_t k;  // 0: all are kept
  float p;     // 1: all are kept

  FASTDECODE_DEVICE Filters(const Call& call, int64_t group) {
    const Group g = group_of(call.sample, group, 0);
    k = g.top_k > 0 && !g.greedy() ? static_cast<uint64_t>(g.top_k) : 0;
    p = g.greedy() ? 1.0f : g.top_p;
    if (!call.expert) return;
    k = static_cast<uint64_t>(call.sample.contrast_k);
    p = 1.0f;
  }

  FASTDECODE_DEVICE bool on() const { return k > 0 || p < 1.0f; }
};

struct Count {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const Call& call) {
    const Chunk chunk(call, block.index());
    const Filters filters(call, chunk.group);
    const uint64_t outcome = outcome_of(block, call, chunk.w);
    if (!has_top(outcome) || !filters.on()) return;
    count(block, chunk, filters, float_of_key(static_cast<uint32_t>(outcome)));
    if (!block.last(&chunk.w.state->counted, static_cast<uint32_t>(call.chunks))) return;
    find_depths(block, call, filters, chunk.w);
  }

 private:
  template <class Block>
  FASTDECODE_DEVICE static void count(Block& block, const Chunk& chunk, const Filters& filters,
                                      float top) {
    const int n = chunk.size(static_cast<int32_t>(chunk.w.state->size));
    if (n == 0) return;
    const float* z = chunk.w.z + chunk.first();
    Shared& s = block.shared();
    uint32_t* counts = s.low + kDepths;  // the first halves of low and high hold the masses
    block.each(kDepths, [&](int i) { s.low[i] = s.high[i] = counts[i] = 0; });
    block.each(n, [&](int i) {
      const float x = z[i];
      if (!(x > -kInf)) return;
      const uint32_t at = depth_of(x, top);
      block.add(&counts[at], 1u);
      if (filters.p == 1.0f) return;
      const uint64_t mass = MassOf{top}(x);
      if (mass != 0) add_wide(block, &s.low[at], &s.high[at], mass);
    });
    block.each(kDepths, [&](int i) {
      if (counts[i] == 0) return;
      const uint64_t mass = static_cast<uint64_t>(s.high[i]) << 32 | s.low[i];
      block.add(&chunk.w.counts[i], counts[i]);
      if (mass != 0) block.add(&chunk.w.masses[i], mass);
    });
  }

  template <class Block>
  FASTDECODE_DEVICE static void find_depths(Block& block, const Call& call, const Filters& filters,
                                            const Workspace& w) {
    const auto count_at = [&](int i) -> uint64_t { return w.counts[i]; };
    const auto mass_at = [&](int i) { return w.masses[i]; };
    uint32_t k_at = kDepths, k_rank = 0;
    if (filters.k > 0) {
      const uint64_t total = block.sum(kDepths, count_at);
      if (filters.k < total || call.expert) {
        const uint64_t k = filters.k < total ? filters.k : total;
        const Found found = first_reaching(block, kDepths, k, count_at);
        k_at = static_cast<uint32_t>(found.at);
        k_rank = static_cast<uint32_t>(k - found.before);
      }
    }
    uint32_t p_first = 1, p_last = 0;
    uint64_t before = 0;
    if (filters.p < 1.0f) {
      // What top-k keeps weighs at least `before`, the mass above depth k_at, and at most `before`
      // and the mass at depth k_at.
      const int above = static_cast<int>(k_at);
      before = block.sum(above, mass_at);
      const uint64_t most = before + (k_at < kDepths ? w.masses[k_at] : 0);
      p_first = depth_reaching(block, top_p_limit(filters.p, before), mass_at);
      p_last = depth_reaching(block, top_p_limit(filters.p, most), mass_at);
    }
    block.once([&] {
      State& s = *w.state;
      s.k_at = k_at;
      s.k_rank = k_rank;
      s.p_first = p_first;
      s.p_last = p_last;
      s.before = before;
    });
  }

  template <class Block, typename Mass>
  FASTDECODE_DEVICE static uint32_t depth_reaching(Block& block, uint64_t limit, Mass mass_at) {
    return static_cast<uint32_t>(first_reaching(block, kDepths, limit, mass_at).at);
  }
};

struct List {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const Call& call) {
    const Chunk chunk(call, block.index());
    const Filters filters(call, chunk.group);
    const uint64_t outcome = outcome_of(block, call, chunk.w);
    const uint32_t key = has_top(outcome) ? static_cast<uint32_t>(outcome) : 0;
    const float top = float_of_key(key);
    const bool searches = key != 0 && filters.on();
    if (searches) list(block, chunk, top);
    if (!block.last(&chunk.w.state->cut_blocks, static_cast<uint32_t>(call.chunks))) return;
    const uint32_t cut = searches ? find_cut(block, filters, chunk.w, top) : 0;
    block.once([&] {
      State& s = *chunk.w.state;
      if (call.expert) {
        s.expert_top = key;
        s.expert_kth = cut;
      } else {
        s.cut = cut;
      }
    });
  }

 private:
  template <class Block>
  FASTDECODE_DEVICE static void list(Block& block, const Chunk& chunk, float top) {
    State& s = *chunk.w.state;
    const int n = chunk.size(static_cast<int32_t>(s.size));
    if (n == 0) return;
    const uint32_t k_at = s.k_at, p_first = s.p_first, p_last = s.p_last;
    const float* all = chunk.w.z + chunk.first();
    float* z = block.values();
    const uint64_t number = block.sum(n, [&](int i) -> uint64_t {
      const float x = all[i];
      const uint32_t at = x > -kInf ? depth_of(x, top) : kDepths;
      const bool wanted = at < kDepths && (at == k_at || (at >= p_first && at <= p_last));
      z[i] = wanted ? x : -kInf;
      return wanted;
    });
    if (number == 0) return;
    uint64_t* found = block.shared().found;
    block.once([&] { found[0] = block.add(&s.listed, static_cast<uint32_t>(number)); });
    float* listed = chunk.w.listed + found[0];
    block.prefix(
        n, [&](int i) -> uint64_t { return z[i] > -kInf; },
        [&](int i, uint64_t before) {
          if (z[i] > -kInf) listed[before] = z[i];
        });
  }

  // The largest key such that the listed z of one depth from that key up weigh at least the limit.
  // All z of the depth together do.
  template <class Block, typename Weight>
  FASTDECODE_DEVICE static uint32_t cut_at(Block& block, const float* listed, int n, float top,
                                           uint32_t depth, uint64_t limit, Weight weight) {
    const auto is_here = [&](float x) { return depth_of(x, top) == depth; };
    const uint32_t hi = static_cast<uint32_t>(block.max(
        n, [&](int i) -> uint64_t { return is_here(listed[i]) ? order_key(listed[i]) : 0; }));
    const uint32_t lo = ~static_cast<uint32_t>(block.max(
        n, [&](int i) -> uint64_t { return is_here(listed[i]) ? ~order_key(listed[i]) : 0; }));
    if (lo == hi) return hi;
    return weighted_cut(block, listed, n, lo, hi, weight, [&](uint64_t) { return limit; });
  }

  template <class Block>
  FASTDECODE_DEVICE static uint32_t find_cut(Block& block, const Filters& filters,
                                             const Workspace& w, float top) {
    const State& s = *w.state;
    const int n = static_cast<int>(s.listed);
    const uint32_t k_at = s.k_at;
    uint32_t cut = 0;
    if (k_at < kDepths) cut = cut_at(block, w.listed, n, top, k_at, s.k_rank, CountOf{});
    if (filters.p == 1.0f) return cut;
    const auto mass_at = [&](int i) { return w.masses[i]; };
    uint64_t total = s.before;
    if (k_at < kDepths) {
      total += block.sum(n, [&](int i) -> uint64_t {
        const float x = w.listed[i];
        return depth_of(x, top) == k_at && order_key(x) >= cut ? MassOf{top}(x) : 0;
      });
    }
    const Found found = first_reaching(block, kDepths, top_p_limit(filters.p, total), mass_at);
    const uint64_t rest = top_p_limit(filters.p, total) - found.before;
    const uint32_t p_cut =
        cut_at(block, w.listed, n, top, static_cast<uint32_t>(found.at), rest, MassOf{top});
    return cut > p_cut ? cut : p_cut;
  }
};

}  // namespace
}  // namespace fastdecode
