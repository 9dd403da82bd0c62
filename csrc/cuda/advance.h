// A token appended to a group: the grammar as tables, by one thread. As csrc/cpu/advance.cpp, but
// that what does not fit together fails the group, since nobody has looked at it before.
#pragma once

#include "cuda/block.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 62;

enum class Next { kNothing, kForced, kDrawn, kWrong };

// What comes next in a group: nothing, the token `value`, one of the set `value`; wrong if the
// group's mode or step, or the token, is none.
struct Coming {
  Next next;
  int32_t value;
};

FASTDECODE_DEVICE inline Coming coming_at(const fastdecode_advance_args& a, int64_t group,
                                          int32_t mode, int64_t step) {
  const fastdecode_grammar& tables = a.grammar;
  int64_t left = INT64_MAX;
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
FASTDECODE_DEVICE inline Coming coming(const fastdecode_advance_args& a, int64_t group) {
  const int32_t mode = a.mode[group];
  const int64_t step = a.step[group];
  if (mode < 0 || mode >= a.grammar.modes || step < 0 || step >= kMaxStep ||
      (a.sequences != nullptr && step >= a.capacity)) {
    return {Next::kWrong, 0};
  }
  return coming_at(a, group, mode, step);
}

FASTDECODE_DEVICE inline int32_t class_of(const fastdecode_grammar& tables, int64_t token) {
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

// The mode behind the token; -1 if the tables name none.
FASTDECODE_DEVICE inline int32_t mode_after(const fastdecode_grammar& tables, int32_t mode,
                                            int64_t token) {
  const int32_t number = class_of(tables, token);
  if (number < 0 || number >= tables.classes) return -1;
  const int32_t next = tables.following[mode * tables.classes + number];
  return next < tables.modes ? next : -1;
}

FASTDECODE_DEVICE inline int64_t row_of(const fastdecode_advance_args& a, int64_t group,
                                        int64_t k) {
  return a.streams != nullptr ? a.streams[group * a.streams_per_group + k] : group;
}

FASTDECODE_DEVICE inline bool rows_exist(const fastdecode_advance_args& a, int64_t group) {
  if (a.inputs == nullptr && a.lengths == nullptr) return true;
  for (int64_t k = 0; k < a.streams_per_group; ++k) {
    const int64_t row = row_of(a, group, k);
    if (row < -1 || row >= a.rows) return false;
  }
  return true;
}

// Appends the token, an id, to a running group that is good.
FASTDECODE_DEVICE inline void append(const fastdecode_advance_args& a, int64_t group,
                                     int64_t token) {
  const int64_t step = a.step[group];
  for (int64_t k = 0; k < a.streams_per_group; ++k) {
    const int64_t row = row_of(a, group, k);
    if (row < 0) continue;
    if (a.inputs != nullptr) a.inputs[row] = token;
    if (a.lengths != nullptr) a.lengths[row] += 1;
  }
  if (a.seen != nullptr) {
    uint32_t* words = reinterpret_cast<uint32_t*>(a.seen) + group * ((a.vocab + 31) / 32);
    words[token >> 5] |= 1u << (token & 31);
  }
  if (a.sequences != nullptr) a.sequences[group * a.capacity + step] = token;
}

FASTDECODE_DEVICE inline uint8_t advanced(const fastdecode_advance_args& a, int64_t group,
                                          Coming next, int64_t token) {
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

FASTDECODE_DEVICE inline void advance_group(const fastdecode_advance_args& a, int64_t group) {
  if (a.finished[group] != FASTDECODE_RUNNING) return;
  a.finished[group] = advanced(a, group, coming(a, group), a.token[group]);
}

// Writes what there is to say of a group that was not drawn for, and appends what there is.
FASTDECODE_DEVICE inline void complete_group(const fastdecode_sample_args& drawn,
                                             const fastdecode_advance_args& a, int64_t group) {
  const bool running = a.finished[group] == FASTDECODE_RUNNING;
  const Coming next = running ? coming(a, group) : Coming{Next::kNothing, 0};
  if (next.next != Next::kDrawn) {
    const bool forced = next.next == Next::kForced, wrong = next.next == Next::kWrong;
    drawn.token[group] = forced ? next.value : -1;
    drawn.logprob[group] = forced ? 0.0f : -__builtin_inff();
    drawn.kept[group] = forced ? 1 : 0;
    drawn.status[group] = forced  ? FASTDECODE_STATUS_OK
                          : wrong ? FASTDECODE_STATUS_INVALID_LOGITS
                                  : FASTDECODE_STATUS_FINISHED;
  }
  if (running) a.finished[group] = advanced(a, group, next, drawn.token[group]);
}

}  // namespace
}  // namespace fastdecode
