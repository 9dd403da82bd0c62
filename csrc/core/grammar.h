// The grammar as tables: what may come next in a group, and what a token changes. All tables and
// values that a group uses are checked here, since those in a GPU's memory cannot be checked before
// a launch; a group whose values are out of range fails.
#pragma once

#include "core/numerics.h"
#include "core/sample_group.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 62;

// What comes next in a group: nothing, since it has ended; the token `value`; a token drawn from
// the set `value`; or an error, because the mode, the step or the forced token is out of range.
enum class Next { kNothing, kForced, kDrawn, kWrong };

struct Coming {
  Next next;
  int32_t value;
};

FASTDECODE_HD inline Coming coming_at(const fastdecode_advance_args& a, int64_t group, int32_t mode,
                                      int64_t step) {
  const fastdecode_grammar& tables = a.grammar;
  int64_t left = INT64_MAX;  // tokens below the limit
  if (a.limit != nullptr) left = a.limit[group] > step ? a.limit[group] - step : 0;
  if (left <= 0) return {Next::kNothing, 0};
  const bool tight =
      tables.tight_set_of != nullptr && tables.room != nullptr && left < tables.room[mode];
  const int32_t set = tight ? tables.tight_set_of[mode] : tables.set_of[mode];
  if (set >= 0) return {Next::kDrawn, set};
  const int32_t forced = tables.forced[mode];
  if (forced >= a.vocab) return {Next::kWrong, 0};
  return forced >= 0 ? Coming{Next::kForced, forced} : Coming{Next::kNothing, 0};
}

// Of a group that is running.
FASTDECODE_HD inline Coming coming(const fastdecode_advance_args& a, int64_t group) {
  const int32_t mode = a.mode[group];
  const int64_t step = a.step[group];
  if (mode < 0 || mode >= a.grammar.modes || step < 0 || step >= kMaxStep ||
      (a.sequences != nullptr && step >= a.capacity)) {
    return {Next::kWrong, 0};
  }
  return coming_at(a, group, mode, step);
}

FASTDECODE_HD inline int32_t class_of(const fastdecode_grammar& tables, int64_t token) {
  int64_t first = 0, last = tables.class_range_count;
  while (first < last) {
    const int64_t middle = first + (last - first) / 2;
    const int32_t* range = tables.class_ranges + 3 * middle;
    if (token < range[0]) {
      last = middle;
    } else if (token >= range[1]) {
      first = middle + 1;
    } else {
      return range[2];
    }
  }
  return 0;
}

// The mode after the token; -1 if the tables name none.
FASTDECODE_HD inline int32_t mode_after(const fastdecode_grammar& tables, int32_t mode,
                                        int64_t token) {
  const int32_t number = class_of(tables, token);
  if (number < 0 || number >= tables.classes) return -1;
  const int32_t next = tables.following[mode * tables.classes + number];
  return next < tables.modes ? next : -1;
}

// Whether the streams' rows are rows of `inputs` and `lengths`, or -1.
FASTDECODE_HD inline bool rows_exist(const fastdecode_advance_args& a, int64_t group) {
  if (a.inputs == nullptr && a.lengths == nullptr) return true;
  for (int64_t k = 0; k < a.streams_per_group; ++k) {
    const int64_t row = row_of(a.streams, a.streams_per_group, group, k);
    if (row < -1 || row >= a.rows) return false;
  }
  return true;
}

// Appends a token to a group whose values have been checked.
FASTDECODE_HD inline void append(const fastdecode_advance_args& a, int64_t group, int64_t token) {
  const int64_t step = a.step[group];
  for (int64_t k = 0; k < a.streams_per_group; ++k) {
    const int64_t row = row_of(a.streams, a.streams_per_group, group, k);
    if (row < 0) continue;
    if (a.inputs != nullptr) a.inputs[row] = token;
    if (a.lengths != nullptr) {  // unsigned, since a length is whatever the caller stored
      a.lengths[row] = static_cast<int64_t>(static_cast<uint64_t>(a.lengths[row]) + 1);
    }
  }
  if (a.seen != nullptr) {
    uint32_t* words = reinterpret_cast<uint32_t*>(a.seen) + group * ((a.vocab + 31) / 32);
    words[token >> 5] |= 1u << (token & 31);
  }
  if (a.sequences != nullptr) a.sequences[group * a.capacity + step] = token;
}

// Appends the token to a running group, for which `next` came next, and moves its mode and step.
// Returns its fastdecode_finished.
FASTDECODE_HD inline uint8_t advanced(const fastdecode_advance_args& a, int64_t group, Coming next,
                                      int64_t token) {
  if (next.next == Next::kNothing) return FASTDECODE_ENDED;
  if (next.next == Next::kWrong || token < 0 || token >= a.vocab || !rows_exist(a, group)) {
    return FASTDECODE_FAILED;
  }
  const int32_t after = mode_after(a.grammar, a.mode[group], token);
  if (after < 0) return FASTDECODE_FAILED;
  append(a, group, token);
  a.mode[group] = after;
  a.step[group] += 1;
  return coming_at(a, group, after, a.step[group]).next == Next::kNothing ? FASTDECODE_ENDED
                                                                          : FASTDECODE_RUNNING;
}

// Appends a.token[group], if the group is running.
FASTDECODE_HD inline void advance_group(const fastdecode_advance_args& a, int64_t group) {
  if (a.finished[group] != FASTDECODE_RUNNING) return;
  a.finished[group] = advanced(a, group, coming(a, group), a.token[group]);
}

// Of sample_advance: what comes next in a group, running or not.
FASTDECODE_HD inline Coming coming_if_running(const fastdecode_advance_args& a, int64_t group) {
  return a.finished[group] == FASTDECODE_RUNNING ? coming(a, group) : Coming{Next::kNothing, 0};
}

// Writes the answer of a group for which no token is drawn.
FASTDECODE_HD inline void write_undrawn(const fastdecode_sample_args& args, int64_t group,
                                        Coming next) {
  if (next.next == Next::kForced) return write_certain(args, group, next.value);
  write_none(
      args, group,
      next.next == Next::kWrong ? FASTDECODE_STATUS_INVALID_LOGITS : FASTDECODE_STATUS_FINISHED);
}

}  // namespace
}  // namespace fastdecode
