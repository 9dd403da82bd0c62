#include "cpu/sample_check.h"

#include "core/check.h"
#include "cpu/arrays.h"
#include "cpu/isa.h"

namespace fastdecode {
namespace {

fastdecode_result check_shapes(const fastdecode_sample_args& a) {
  CHECKED(check_dtype(a.dtype));
  CHECKED(check_sample_sizes(a));
  if (a.groups == 0) return FASTDECODE_OK;
  CHECKED(check_sample_pointers(a));
  INVALID_IF(a.sets > 0 && a.ranges == nullptr && a.set_offsets[a.sets] > a.set_offsets[0],
             "ranges = NULL: must be given with ranges in the sets");
  return FASTDECODE_OK;
}

fastdecode_result check_streams(const fastdecode_sample_args& a) {
  const int64_t width = a.streams_per_group;
  for (int64_t i = 0; i < a.groups * width; ++i) {
    if (a.streams != nullptr && (a.streams[i] < -1 || a.streams[i] >= a.rows)) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "streams[%" PRId64 ", %" PRId64 "] = %d: must be a row in [0, %" PRId64
                  "), or -1",
                  i / width, i % width, a.streams[i], a.rows);
    }
    if (a.weights != nullptr && !std::isfinite(a.weights[i])) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "weights[%" PRId64 ", %" PRId64 "] = %g: must be finite", i / width, i % width,
                  a.weights[i]);
    }
  }
  return FASTDECODE_OK;
}

fastdecode_result check_sets(const fastdecode_sample_args& a) {
  if (a.groups == 0) return FASTDECODE_OK;
  const int64_t sets = a.sets > 0 ? a.sets : 1;
  for (int64_t g = 0; a.set_index != nullptr && g < a.groups; ++g) {
    if (a.set_index[g] < 0 || a.set_index[g] >= sets) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "set_index[%" PRId64 "] = %d: must be in [0, %" PRId64 ")", g, a.set_index[g],
                  sets);
    }
  }
  if (a.sets > 0 && a.set_offsets[0] < 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "set_offsets[0] = %d: must be >= 0", a.set_offsets[0]);
  }
  // All offsets come before the ranges: the last offset is the number of ranges.
  for (int64_t s = 0; s < a.sets; ++s) {
    if (a.set_offsets[s + 1] < a.set_offsets[s]) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "set_offsets[%" PRId64 "] = %d: must not decrease",
                  s + 1, a.set_offsets[s + 1]);
    }
  }
  for (int64_t s = 0; s < a.sets; ++s) {
    int32_t end = 0;
    for (int64_t r = a.set_offsets[s]; r < a.set_offsets[s + 1]; ++r) {
      const int32_t lo = a.ranges[2 * r], hi = a.ranges[2 * r + 1];
      if (lo < end || hi < lo) {
        return fail(FASTDECODE_INVALID_ARGUMENT,
                    "ranges[%" PRId64 "] = (%d, %d): must be lo <= hi, sorted and disjoint", r, lo,
                    hi);
      }
      if (hi > a.vocab) {
        return fail(FASTDECODE_INVALID_ARGUMENT,
                    "ranges[%" PRId64 "] = (%d, %d): leaves the vocabulary of %" PRId64 " tokens",
                    r, lo, hi, a.vocab);
      }
      end = hi;
    }
  }
  return FASTDECODE_OK;
}

fastdecode_result check_outputs(const fastdecode_sample_args& a) {
  if (a.groups == 0) return FASTDECODE_OK;
  const std::array<Area, 4> results = results_of(a);
  CHECKED(check_all_apart(results));
  CHECKED(check_apart(results, inputs_of(a)));
  return check_apart(results, {seen_of(a)});
}

}  // namespace

fastdecode_result check_sample_args(const fastdecode_sample_args& args) {
  CHECKED(check_isa());
  CHECKED(check_shapes(args));
  CHECKED(check_streams(args));
  CHECKED(check_sets(args));
  CHECKED(check_outputs(args));
  return check_parameters(args, args.groups);
}

}  // namespace fastdecode
