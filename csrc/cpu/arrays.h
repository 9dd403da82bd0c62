// The arrays of fastdecode_sample and fastdecode_advance, for the checks that none that is written
// overlaps another. The sizes have been checked, and so have set_offsets.
#pragma once

#include <array>

#include "core/apart.h"
#include "core/dtypes.h"

namespace fastdecode {
namespace {

// Elements of `count` rows of the vocabulary, as check_stride has found them right.
inline int64_t rows_of_vocab(int64_t count, int64_t stride, int64_t vocab) {
  if (count <= 0) return 0;
  return (count > 1 && stride != FASTDECODE_REPEAT ? (count - 1) * stride : 0) + vocab;
}

// Of fastdecode_sample_args or fastdecode_advance_args.
template <typename Args>
Area seen_of(const Args& a) {
  return {"seen", a.seen, a.groups * ((a.vocab + 31) / 32), 4};
}

// What a sample writes.
inline std::array<Area, 4> results_of(const fastdecode_sample_args& a) {
  return {{{"token", a.token, a.groups, 8},
           {"logprob", a.logprob, a.groups, 4},
           {"kept", a.kept, a.groups, 4},
           {"status", a.status, a.groups, 4}}};
}

// What a sample of some groups reads, but `seen`.
inline std::array<Area, 14> inputs_of(const fastdecode_sample_args& a) {
  const int64_t streams = a.groups * a.streams_per_group;
  const int64_t ranges = a.sets > 0 ? int64_t{2} * a.set_offsets[a.sets] : 0;
  const int64_t noise = a.noise != nullptr ? rows_of_vocab(a.groups, a.noise_stride, a.vocab) : 0;
  return {{{"logits", a.logits, rows_of_vocab(a.rows, a.row_stride, a.vocab), size_of(a.dtype)},
           {"streams", a.streams, streams, 4},
           {"weights", a.weights, streams, 4},
           {"ranges", a.ranges, ranges, 4},
           {"set_offsets", a.set_offsets, a.sets + 1, 4},
           {"set_index", a.set_index, a.groups, 4},
           {"temperature", a.temperature, a.groups, 4},
           {"top_k", a.top_k, a.groups, 4},
           {"top_p", a.top_p, a.groups, 4},
           {"min_p", a.min_p, a.groups, 4},
           {"penalty", a.penalty, a.groups, 4},
           {"seed", a.seed, a.groups, 8},
           {"step", a.step, a.groups, 8},
           {"noise", a.noise, noise, 4}}};
}

// What an advance writes.
inline std::array<Area, 7> state_of(const fastdecode_advance_args& a) {
  const int64_t places = a.sequences != nullptr ? a.groups * a.capacity : 0;
  return {{{"mode", a.mode, a.groups, 4},
           {"step", a.step, a.groups, 8},
           {"finished", a.finished, a.groups, 1},
           {"inputs", a.inputs, a.rows, 8},
           {"lengths", a.lengths, a.rows, 8},
           seen_of(a),
           {"sequences", a.sequences, places, 8}}};
}

// What an advance reads, but the tokens and streams, which a sample has too.
inline std::array<Area, 7> tables_of(const fastdecode_advance_args& a) {
  const fastdecode_grammar& g = a.grammar;
  return {{{"limit", a.limit, a.groups, 8},
           {"grammar.set_of", g.set_of, g.modes, 4},
           {"grammar.tight_set_of", g.tight_set_of, g.modes, 4},
           {"grammar.room", g.room, g.modes, 4},
           {"grammar.forced", g.forced, g.modes, 4},
           {"grammar.following", g.following, g.modes * g.classes, 4},
           {"grammar.class_ranges", g.class_ranges, 3 * g.class_range_count, 4}}};
}

}  // namespace
}  // namespace fastdecode
