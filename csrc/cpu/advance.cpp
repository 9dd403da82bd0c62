// fastdecode_advance: see the header for what it does, and
// fastdecode/ops/advance/reference.py for the same in torch.

#include "cpu/advance.h"

#include <cinttypes>
#include <cstring>

#include "cpu/error.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 62;

fastdecode_result check_pointers(const fastdecode_advance_args& a) {
  const fastdecode_grammar& tables = a.grammar;
  if (a.groups < 0 || a.rows < 0 || a.streams_per_group < 0 || a.vocab < 0 || a.capacity < 0 ||
      tables.class_range_count < 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "groups, rows, streams_per_group, vocab, capacity and class_range_count must be >= "
                "0");
  }
  if (a.groups == 0) return FASTDECODE_OK;
  if (tables.modes < 1 || tables.classes < 1) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.modes = %" PRId64 ", grammar.classes = %" PRId64 ": must be at least 1",
                tables.modes, tables.classes);
  }
  if (tables.set_of == nullptr || tables.forced == nullptr || tables.following == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.set_of, grammar.forced and grammar.following must not be NULL");
  }
  if (tables.class_ranges == nullptr && tables.class_range_count > 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.class_ranges = NULL: must be given with class_range_count > 0");
  }
  if (a.mode == nullptr || a.step == nullptr || a.finished == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "mode, step and finished must not be NULL");
  }
  if (a.streams == nullptr && (a.inputs != nullptr || a.lengths != nullptr) &&
      (a.streams_per_group != 1 || a.groups > a.rows)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "streams = NULL: needs streams_per_group = 1 and groups <= rows");
  }
  return FASTDECODE_OK;
}

fastdecode_result check_class_ranges(const fastdecode_grammar& tables) {
  int32_t end = 0;
  for (int64_t r = 0; r < tables.class_range_count; ++r) {
    const int32_t* range = tables.class_ranges + 3 * r;
    if (range[0] < end || range[1] < range[0] || range[2] < 0 || range[2] >= tables.classes) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "grammar.class_ranges[%" PRId64
                  "] = (%d, %d, %d): must be lo <= hi and a class below %" PRId64
                  ", sorted and disjoint",
                  r, range[0], range[1], range[2], tables.classes);
    }
    end = range[1];
  }
  return FASTDECODE_OK;
}

// What the grammar says of one mode.
fastdecode_result check_mode(const fastdecode_advance_args& a, int32_t mode, int64_t sets) {
  const fastdecode_grammar& tables = a.grammar;
  const int32_t set = tables.set_of[mode];
  const int32_t tight = tables.tight_set_of != nullptr ? tables.tight_set_of[mode] : set;
  if (sets >= 0 && (set < -1 || set >= sets || tight < -1 || tight >= sets)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.set_of[%d] = %d, grammar.tight_set_of[%d] = %d: must be in [-1, %" PRId64
                ")",
                mode, set, mode, tight, sets);
  }
  const int32_t forced = tables.forced[mode];
  if (forced < -1 || forced >= a.vocab) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.forced[%d] = %d: must be an id below %" PRId64 ", or -1", mode, forced,
                a.vocab);
  }
  for (int64_t c = 0; c < tables.classes; ++c) {
    const int32_t next = tables.following[mode * tables.classes + c];
    if (next >= 0 && next < tables.modes) continue;
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.following[%d, %" PRId64 "] = %d: must be a mode in [0, %" PRId64 ")", mode,
                c, next, tables.modes);
  }
  return FASTDECODE_OK;
}

fastdecode_result check_group(const fastdecode_advance_args& a, int64_t g, int64_t sets) {
  if (a.finished[g] > FASTDECODE_FAILED) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "finished[%" PRId64 "] = %d: must be 0, 1 or 2", g,
                a.finished[g]);
  }
  if (a.finished[g] != FASTDECODE_RUNNING) return FASTDECODE_OK;
  if (a.mode[g] < 0 || a.mode[g] >= a.grammar.modes) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "mode[%" PRId64 "] = %d: must be in [0, %" PRId64 ")",
                g, a.mode[g], a.grammar.modes);
  }
  if (a.step[g] < 0 || a.step[g] >= kMaxStep) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "step[%" PRId64 "] = %" PRId64 ": must be in [0, 2^62)", g, a.step[g]);
  }
  if (a.sequences != nullptr && a.step[g] >= a.capacity) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "step[%" PRId64 "] = %" PRId64 ": sequences have room for %" PRId64 " ids", g,
                a.step[g], a.capacity);
  }
  if (sets < 0 && (a.token[g] < -1 || a.token[g] >= a.vocab)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "token[%" PRId64 "] = %" PRId64 ": must be an id below %" PRId64 ", or -1", g,
                a.token[g], a.vocab);
  }
  for (int64_t k = 0; a.streams != nullptr && k < a.streams_per_group; ++k) {
    const int32_t row = a.streams[g * a.streams_per_group + k];
    if (row >= -1 && row < a.rows) continue;
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "streams[%" PRId64 ", %" PRId64 "] = %d: must be a row in [0, %" PRId64 "), or -1",
                g, k, row, a.rows);
  }
  return check_mode(a, a.mode[g], sets);
}

int32_t class_of(const fastdecode_grammar& tables, int64_t token) {
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

int64_t room_left(const fastdecode_advance_args& args, int64_t group) {
  if (args.limit == nullptr) return INT64_MAX;
  const int64_t limit = args.limit[group], step = args.step[group];  // step >= 0, limit whatever
  return limit > step ? limit - step : 0;
}

}  // namespace

fastdecode_result check_advance_size(const fastdecode_advance_args* args) {
  if (args == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "args = NULL: must point to the arguments");
  }
  if (args->size == sizeof *args) return FASTDECODE_OK;
  return fail(FASTDECODE_INVALID_ARGUMENT,
              "args->size = %zu: this library expects %zu; call fastdecode_advance_args_init",
              args->size, sizeof *args);
}

fastdecode_result check_advance_args(const fastdecode_advance_args& args, int64_t sets) {
  fastdecode_result result = check_pointers(args);
  if (args.groups == 0) return result;
  if (result == FASTDECODE_OK && sets < 0 && args.token == nullptr) {
    result = fail(FASTDECODE_INVALID_ARGUMENT, "token = NULL: must point to the tokens");
  }
  if (result == FASTDECODE_OK) result = check_class_ranges(args.grammar);
  for (int64_t g = 0; result == FASTDECODE_OK && g < args.groups; ++g) {
    result = check_group(args, g, sets);
  }
  return result;
}

Coming coming(const fastdecode_advance_args& args, int64_t group) {
  const fastdecode_grammar& tables = args.grammar;
  const int32_t mode = args.mode[group];
  const int64_t left = room_left(args, group);
  if (left <= 0) return {Next::kNothing, 0};
  const bool tight =
      tables.tight_set_of != nullptr && tables.room != nullptr && left < tables.room[mode];
  const int32_t set = tight ? tables.tight_set_of[mode] : tables.set_of[mode];
  if (set >= 0) return {Next::kDrawn, set};
  if (tables.forced[mode] >= 0) return {Next::kForced, tables.forced[mode]};
  return {Next::kNothing, 0};
}

void advance_group(const fastdecode_advance_args& args, int64_t group) {
  if (args.finished[group] != FASTDECODE_RUNNING) return;
  if (coming(args, group).next == Next::kNothing) {
    args.finished[group] = FASTDECODE_ENDED;
    return;
  }
  const int32_t before = args.mode[group];
  const int64_t token = args.token[group], step = args.step[group];
  if (token < 0) {
    args.finished[group] = FASTDECODE_FAILED;
    return;
  }
  for (int64_t k = 0; k < args.streams_per_group; ++k) {
    const int64_t row =
        args.streams != nullptr ? args.streams[group * args.streams_per_group + k] : group;
    if (row < 0) continue;
    if (args.inputs != nullptr) args.inputs[row] = token;
    if (args.lengths != nullptr) {
      args.lengths[row] = static_cast<int64_t>(static_cast<uint64_t>(args.lengths[row]) + 1);
    }
  }
  if (args.seen != nullptr) {
    uint32_t* words = reinterpret_cast<uint32_t*>(args.seen) + group * ((args.vocab + 31) / 32);
    words[token >> 5] |= 1u << (token & 31);
  }
  if (args.sequences != nullptr) args.sequences[group * args.capacity + step] = token;
  const fastdecode_grammar& tables = args.grammar;
  args.mode[group] = tables.following[before * tables.classes + class_of(tables, token)];
  args.step[group] = step + 1;
  if (coming(args, group).next == Next::kNothing) args.finished[group] = FASTDECODE_ENDED;
}

}  // namespace fastdecode

extern "C" {

void fastdecode_advance_args_init(fastdecode_advance_args* args) {
  std::memset(args, 0, sizeof *args);
  args->size = sizeof *args;
  args->streams_per_group = 1;
}

fastdecode_result fastdecode_advance(const fastdecode_advance_args* given) {
  using namespace fastdecode;
  fastdecode_result checked = check_advance_size(given);
  if (checked == FASTDECODE_OK) checked = check_advance_args(*given, -1);
  if (checked != FASTDECODE_OK) return checked;
  for (int64_t group = 0; group < given->groups; ++group) advance_group(*given, group);
  return FASTDECODE_OK;
}

}  // extern "C"
