#include "cpu/sample_check.h"

#include <cinttypes>
#include <cmath>

#include "cpu/error.h"
#include "cpu/isa.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 22;  // masses of 2^40 each must add up below 2^63

// A parameter of type float given per group, or for all groups where the pointer is null.
template <typename Valid>
fastdecode_result check_float(const char* name, const float* per_group, float value, int64_t groups,
                              const char* rule, Valid valid) {
  if (per_group == nullptr) {
    if (valid(value)) return FASTDECODE_OK;
    return fail(FASTDECODE_INVALID_ARGUMENT, "%s = %g: must be %s", name, value, rule);
  }
  for (int64_t g = 0; g < groups; ++g) {
    if (valid(per_group[g])) continue;
    return fail(FASTDECODE_INVALID_ARGUMENT, "%s[%" PRId64 "] = %g: must be %s", name, g,
                per_group[g], rule);
  }
  return FASTDECODE_OK;
}

bool in_unit_interval(float x) {
  return x >= 0.0f && x <= 1.0f;
}

fastdecode_result check_shapes(const fastdecode_sample_args& a) {
  if (a.dtype < FASTDECODE_FLOAT32 || a.dtype > FASTDECODE_FLOAT16) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "dtype = %d: must be a fastdecode_dtype", a.dtype);
  }
  if (a.rows < 0 || a.groups < 0 || a.streams_per_group < 0 || a.sets < 0 || a.threads < 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "rows, groups, streams_per_group, sets and threads must be >= 0");
  }
  if (a.vocab < 0 || a.vocab > kMaxVocab) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "vocab = %" PRId64 ": must be in [0, %" PRId64 "]",
                a.vocab, kMaxVocab);
  }
  if (a.groups == 0) return FASTDECODE_OK;
  if (a.logits == nullptr && a.rows > 0 && a.vocab > 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "logits = NULL: must point to the logits");
  }
  if (a.token == nullptr || a.logprob == nullptr || a.kept == nullptr || a.status == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "token, logprob, kept and status must not be NULL");
  }
  if (a.streams == nullptr && (a.streams_per_group != 1 || a.groups > a.rows)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "streams = NULL: needs streams_per_group = 1 and groups <= rows");
  }
  if (a.sets > 0 && a.set_offsets == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "set_offsets = NULL: must be given with sets > 0");
  }
  if (a.sets > 0 && a.ranges == nullptr && a.set_offsets[a.sets] > a.set_offsets[0]) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "ranges = NULL: must be given with ranges in the sets");
  }
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
  // All of them first: the last says how many ranges there are.
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
                    "ranges[%" PRId64 "] = (%d, %d): leaves the vocabulary of %" PRId64 " ids", r,
                    lo, hi, a.vocab);
      }
      end = hi;
    }
  }
  return FASTDECODE_OK;
}

fastdecode_result check_parameters(const fastdecode_sample_args& a) {
  fastdecode_result result =
      check_float("temperature", a.temperature, a.temperature_value, a.groups, "finite and >= 0",
                  [](float x) { return x >= 0.0f && std::isfinite(x); });
  if (result == FASTDECODE_OK) {
    result = check_float("top_p", a.top_p, a.top_p_value, a.groups, "in [0, 1]", in_unit_interval);
  }
  if (result == FASTDECODE_OK) {
    result = check_float("min_p", a.min_p, a.min_p_value, a.groups, "in [0, 1]", in_unit_interval);
  }
  if (result == FASTDECODE_OK) {
    result = check_float("penalty", a.penalty, a.penalty_value, a.groups, "finite and > 0",
                         [](float x) { return x > 0.0f && std::isfinite(x); });
  }
  if (result == FASTDECODE_OK && a.contrast_k < 0) {
    result = fail(FASTDECODE_INVALID_ARGUMENT, "contrast_k = %d: must be >= 0", a.contrast_k);
  }
  if (result == FASTDECODE_OK && a.contrast_k > 0 && !in_unit_interval(a.contrast_alpha)) {
    result = fail(FASTDECODE_INVALID_ARGUMENT, "contrast_alpha = %g: must be in [0, 1]",
                  a.contrast_alpha);
  }
  return result;
}

}  // namespace

fastdecode_result check_sample_args(const fastdecode_sample_args* given) {
  if (given == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "args = NULL: must point to the arguments");
  }
  // This is the first layout. A later one is larger, and takes the defaults for what is missing.
  if (given->size != sizeof(fastdecode_sample_args)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "args->size = %zu: this library expects %zu; call fastdecode_sample_args_init",
                given->size, sizeof(fastdecode_sample_args));
  }
  const fastdecode_sample_args& args = *given;
  fastdecode_result result = check_isa();
  if (result == FASTDECODE_OK) result = check_shapes(args);
  if (result == FASTDECODE_OK) result = check_streams(args);
  if (result == FASTDECODE_OK) result = check_sets(args);
  if (result == FASTDECODE_OK) result = check_parameters(args);
  return result;
}

}  // namespace fastdecode
