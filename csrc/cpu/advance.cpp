// fastdecode_advance: the checks, and the call for each group. core/grammar.h appends the token;
// fastdecode/ops/advance/reference.py does the same in torch.

#include "cpu/advance.h"

#include "core/check.h"
#include "core/grammar.h"
#include "cpu/arrays.h"

namespace fastdecode {
namespace {

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

// The grammar's tables of one mode. `sets`: how many there are to draw from; -1: no token is drawn.
fastdecode_result check_mode(const fastdecode_advance_args& a, int32_t mode, int64_t sets) {
  const fastdecode_grammar& tables = a.grammar;
  const int32_t set = tables.set_of[mode];
  const int32_t tight = tables.tight_set_of != nullptr ? tables.tight_set_of[mode] : set;
  if (sets < 0) {
    INVALID_IF(set < -1 || tight < -1,
               "grammar.set_of[%d] = %d, grammar.tight_set_of[%d] = %d: must be at least -1", mode,
               set, mode, tight);
  } else if (set < -1 || set >= sets || tight < -1 || tight >= sets) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.set_of[%d] = %d, grammar.tight_set_of[%d] = %d: must be in [-1, %" PRId64
                ")",
                mode, set, mode, tight, sets);
  }
  const int32_t forced = tables.forced[mode];
  if (forced < -1 || forced >= a.vocab) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "grammar.forced[%d] = %d: must be a token below %" PRId64 ", or -1", mode, forced,
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
                "step[%" PRId64 "] = %" PRId64 ": sequences have room for %" PRId64 " tokens", g,
                a.step[g], a.capacity);
  }
  if (sets < 0 && (a.token[g] < -1 || a.token[g] >= a.vocab)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "token[%" PRId64 "] = %" PRId64 ": must be a token below %" PRId64 ", or -1", g,
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

fastdecode_result check_apart_from_sample(const fastdecode_advance_args& a,
                                          const fastdecode_sample_args& sample) {
  const std::array<Area, 4> results = results_of(sample);
  const std::array<Area, 7> state = state_of(a);
  CHECKED(check_apart(results, state));
  CHECKED(check_apart(results, tables_of(a)));
  return check_apart(state, inputs_of(sample));
}

fastdecode_result check_state(const fastdecode_advance_args& a) {
  const std::array<Area, 7> state = state_of(a);
  CHECKED(check_all_apart(state));
  CHECKED(check_apart(state, tables_of(a)));
  const int64_t streams = a.groups * a.streams_per_group;
  const std::array<Area, 2> read = {
      {{"token", a.token, a.groups, 8}, {"streams", a.streams, streams, 4}}};
  return check_apart(state, read);
}

}  // namespace

fastdecode_result check_advance_args(const fastdecode_advance_args& args,
                                     const fastdecode_sample_args* sample) {
  CHECKED(check_advance_sizes(args));
  if (args.groups == 0) return FASTDECODE_OK;
  CHECKED(check_advance_pointers(args));
  CHECKED(check_advance_streams(args));
  CHECKED(check_state(args));
  if (sample != nullptr) {
    CHECKED(check_apart_from_sample(args, *sample));
  } else {
    CHECKED(check_advance_tokens(args));
  }
  CHECKED(check_class_ranges(args.grammar));
  const int64_t sets = sample == nullptr ? -1 : sample->sets > 0 ? sample->sets : 1;
  for (int64_t g = 0; g < args.groups; ++g) CHECKED(check_group(args, g, sets));
  return FASTDECODE_OK;
}

}  // namespace fastdecode

extern "C" {

fastdecode_result fastdecode_advance_args_init_sized(fastdecode_advance_args* args, size_t size) {
  return fastdecode::set_up(args, size);
}

fastdecode_result fastdecode_advance(const fastdecode_advance_args* given) {
  using namespace fastdecode;
  Given<fastdecode_advance_args> args;
  CHECKED(args.take("args", given));
  CHECKED(check_advance_args(*args, nullptr));
  for (int64_t group = 0; group < args->groups; ++group) advance_group(*args, group);
  return FASTDECODE_OK;
}

}  // extern "C"
