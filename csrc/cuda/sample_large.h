// `sample` for sets of any size: several blocks per group, z in the workspace.
//
// The positions of a group's set are cut into chunks, one per block. The kernels are
//
//   mix    sets up the workspace; computes the z of each token, and the chunk's outcome
//   count  \ find the cut of top-k and top-p, see sample_cut.h; not launched if both filters are
//   list   / off for all groups
//   draw   adds noise to the kept z; the last block of a group writes the group's answer
//
// With contrast, mix, count and list first run on the logits of the expert.
//
// triton_kernels/sample_large.py has the same stages, with two differences. Here the last block of
// a group combines what its blocks found, in the same launch: four launches with a filter and two
// without, where the Triton kernels take six and three. And chunks are cut from the set's
// positions, not from the range of its tokens: a set with holes, or one smaller than the largest,
// costs no more than its size. Each logit of the set is read once; with contrast, those of the
// first stream twice.
#pragma once

#include "cuda/call.h"
#include "cuda/ids.h"
#include "cuda/workspace.h"

namespace fastdecode {
namespace {

constexpr int kLargeThreads = 256;

// A block's group, and its part of the group's positions.
struct Chunk {
  int64_t group;
  int32_t number;
  Workspace w;

  FASTDECODE_DEVICE Chunk(const Call& call, int64_t block)
      : group(block / call.chunks),
        number(static_cast<int32_t>(block % call.chunks)),
        w(workspace_at(call.workspace, call.chunks, group)) {}

  FASTDECODE_DEVICE int32_t first() const { return number * kChunk; }
  // How many of the set's positions are in this chunk.
  FASTDECODE_DEVICE int size(int32_t set_size) const {
    const int32_t left = set_size - first();
    return left < 0 ? 0 : left < kChunk ? left : kChunk;
  }
};

template <class Block>
FASTDECODE_DEVICE uint64_t outcome_of(Block& block, const Call& call, const Workspace& w) {
  return block.max(call.chunks, [&](int i) { return w.outcomes[i]; });
}

FASTDECODE_DEVICE inline bool has_top(uint64_t outcome) {
  return outcome != 0 && outcome < kWrong;
}

template <typename T>
struct Mix {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const Call& call) {
    const Chunk chunk(call, block.index());
    set_up(block, call, chunk);
    const Choice choice = choice_of(call, chunk.group);
    if (!choice.draws) {
      block.once([&] { chunk.w.outcomes[chunk.number] = kIdle; });
      return;
    }
    const Set set = set_of(call.sample, choice.set);
    Ids<Block> ids(block, set);
    const uint64_t outcome = mix(call, chunk, ids, choice.step);
    block.once([&] {
      chunk.w.outcomes[chunk.number] = outcome;
      if (chunk.number == 0) chunk.w.state->size = static_cast<uint32_t>(ids.size());
    });
  }

 private:
  // Sets to 0 what later launches add to. Not the expert's keys: this launch reads them.
  template <class Block>
  FASTDECODE_DEVICE static void set_up(Block& block, const Call& call, const Chunk& chunk) {
    const Workspace& w = chunk.w;
    const int share = (kDepths + call.chunks - 1) / call.chunks, first = chunk.number * share;
    const int left = kDepths - first;
    block.each(left < share ? (left > 0 ? left : 0) : share,
               [&](int i) { w.masses[first + i] = w.counts[first + i] = 0; });
    if (chunk.number != 0) return;
    block.once([&] {
      State& s = *w.state;
      s.best = s.mass = 0;
      s.kept = s.size = s.listed = 0;
      s.counted = s.cut_blocks = s.drawn_blocks = 0;
      s.cut = 0;
    });
  }

  template <class Block>
  FASTDECODE_DEVICE static uint64_t mix(const Call& call, const Chunk& chunk, Ids<Block>& ids,
                                        int64_t step) {
    const fastdecode_sample_args& a = call.sample;
    const Group g = group_of(a, chunk.group, step);
    const Streams<T> streams(a, chunk.group);
    if (!ids.bad() && ids.size() == 0) return kEmpty;
    if (ids.bad() || ids.size() > call.capacity || g.bad || streams.bad()) return kWrong;
    const int n = chunk.size(ids.size());
    if (n == 0) return 0;

    const int32_t first = chunk.first();
    float* z = chunk.w.z;
    const auto read = [&](int32_t id) { return streams.read(id); };
    if (call.expert) {
      return ids.max(first, first + n, read, [&](int32_t i, int32_t, const Read<T>& r) -> uint64_t {
        const float x = streams.expert(r);
        z[i] = x;
        return x > -kInf ? order_key(x) : 0;
      });
    }
    Contrast contrast = {false, 0.0f, 0.0f};
    if (a.contrast_k > 0) {
      const uint32_t top = chunk.w.state->expert_top, kth = chunk.w.state->expert_kth;
      if (top == 0) return kWrong;
      contrast = contrast_from(a.contrast_alpha, float_of_key(top), float_of_key(kth));
    }
    return ids.max(first, first + n, read,
                   [&](int32_t i, int32_t id, const Read<T>& r) -> uint64_t {
                     const Valued v = value_of_id(streams, g, contrast, id, r);
                     z[i] = v.z;
                     return v.wrong ? kWrong : v.z > -kInf ? order_key(v.z) : 0;
                   });
  }
};

struct Draw {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const Call& call) {
    const Chunk chunk(call, block.index());
    const Workspace& w = chunk.w;
    const uint64_t outcome = outcome_of(block, call, w);
    const Choice choice = choice_of(call, chunk.group);
    const Set set = set_of(call.sample, choice.set);
    const Group g = group_of(call.sample, chunk.group, choice.step);
    Ids<Block> ids(block, set, static_cast<int32_t>(w.state->size));
    if (has_top(outcome)) draw(block, chunk, g, ids, outcome);
    if (!block.last(&w.state->drawn_blocks, static_cast<uint32_t>(call.chunks))) return;
    if (outcome != kIdle) finish(block, call.sample, w, g, ids, outcome);
    if (call.advances) block.once([&] { complete_group(call, chunk.group); });
  }

 private:
  // A chunk's mass is at most 2^50, so the number of its tokens fits into the bits above.
  static constexpr int kCountShift = 52;
  static_assert(kChunk <= 1 << 10, "2^40 each");

  // Adds the chunk's best, mass and count to the group's.
  template <class Block>
  FASTDECODE_DEVICE static void draw(Block& block, const Chunk& chunk, const Group& g,
                                     Ids<Block>& ids, uint64_t outcome) {
    const int32_t first = chunk.first();
    const int n = chunk.size(ids.size());
    if (n == 0) return;
    State& state = *chunk.w.state;
    const float* all = chunk.w.z + first;
    const float top = float_of_key(static_cast<uint32_t>(outcome));
    if (g.greedy()) {
      const uint64_t rank =
          block.max(n, [&](int i) { return all[i] == top ? rank_of(0.0f, first + i) : 0; });
      if (rank != 0) block.once([&] { block.raise(&state.best, rank); });
      return;
    }
    float* z = block.values();
    const uint32_t cut = state.cut;
    const uint64_t sum = block.sum(n, [&](int i) -> uint64_t {
      const float x = all[i];
      const float p = x > -kInf && order_key(x) >= cut ? exp_f32(x - top) : -1.0f;
      z[i] = p >= g.min_p ? x : -kInf;
      if (p < g.min_p) return 0;
      return static_cast<uint64_t>(mass_of(p)) + (uint64_t{1} << kCountShift);
    });
    if (sum == 0) return;
    const uint64_t rank = ids.max(
        first, first + n, [](int32_t) { return true; },
        [&](int32_t i, int32_t id, bool) {
          const float x = z[i - first];
          return x > -kInf ? rank_of(x + noise_of(g, id), i) : uint64_t{0};
        });
    block.once([&] {
      block.raise(&state.best, rank);
      block.add(&state.mass, sum & ((uint64_t{1} << kCountShift) - 1));
      block.add(&state.kept, static_cast<uint32_t>(sum >> kCountShift));
    });
  }

  template <class Block>
  FASTDECODE_DEVICE static void finish(Block& block, const fastdecode_sample_args& a,
                                       const Workspace& w, const Group& g, Ids<Block>& ids,
                                       uint64_t outcome) {
    if (!has_top(outcome)) {
      const int32_t status =
          outcome == kEmpty ? FASTDECODE_STATUS_EMPTY_SET : FASTDECODE_STATUS_INVALID_LOGITS;
      block.once([&] { write_none(a, g.number, status); });
      return;
    }
    const float top = float_of_key(static_cast<uint32_t>(outcome));
    const int32_t place = place_of(w.state->best), id = ids.at(place);
    block.once([&] {
      if (g.greedy()) return write_certain(a, g.number, id);
      const float logprob = logprob_of(w.z[place], top, w.state->mass);
      write(a, g.number, id, logprob, static_cast<int32_t>(w.state->kept), FASTDECODE_STATUS_OK);
    });
  }
};

}  // namespace
}  // namespace fastdecode
