// Checks of arguments that the CPU and the CUDA functions share: what the host can see of a call,
// wherever the arrays lie. Each returns FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a
// message that names the argument.
#pragma once

#include <cinttypes>
#include <cmath>

#include "core/dtypes.h"
#include "core/error.h"
#include "core/sample_group.h"
#include "core/sizes.h"
#include "core/structs.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

inline fastdecode_result check_dtype(int32_t dtype) {
  INVALID_IF(!is_dtype(dtype), "dtype = %d: must be 0 (float32), 1 (bfloat16) or 2 (float16)",
             dtype);
  return FASTDECODE_OK;
}

inline fastdecode_result check_vocab(int64_t vocab) {
  INVALID_IF(vocab < 1 || vocab > kMaxVocab, "vocab = %" PRId64 ": must be in [1, %" PRId64 "]",
             vocab, kMaxVocab);
  return FASTDECODE_OK;
}

// `count` rows or groups, each of which begins `stride` elements after the one before.
inline fastdecode_result check_stride(const char* name, int64_t stride, const char* array,
                                      const char* counted, int64_t count, int64_t vocab) {
  if (count <= 1 || stride == FASTDECODE_REPEAT) return FASTDECODE_OK;
  INVALID_IF(stride < vocab,
             "%s = %" PRId64 ": must be at least vocab = %" PRId64 ", or FASTDECODE_REPEAT", name,
             stride, vocab);
  return check_array(array, {{counted, count}, {name, stride}});
}

inline fastdecode_result check_sample_sizes(const fastdecode_sample_args& a) {
  CHECKED(check_numbers({{"rows", a.rows, 0},
                         {"groups", a.groups, 0},
                         {"streams_per_group", a.streams_per_group, 1},
                         {"sets", a.sets, 0},
                         {"threads", a.threads, 0}}));
  CHECKED(check_vocab(a.vocab));
  CHECKED(check_stride("row_stride", a.row_stride, "logits", "rows", a.rows, a.vocab));
  CHECKED(
      check_array("streams", {{"groups", a.groups}, {"streams_per_group", a.streams_per_group}}));
  if (a.noise == nullptr) return FASTDECODE_OK;
  return check_stride("noise_stride", a.noise_stride, "noise", "groups", a.groups, a.vocab);
}

// Of fastdecode_sample_args or fastdecode_advance_args.
template <typename Args>
fastdecode_result check_default_streams(const Args& a) {
  INVALID_IF(a.streams == nullptr && (a.streams_per_group != 1 || a.groups > a.rows),
             "streams = NULL: must be given unless streams_per_group = 1 and groups <= rows; here "
             "streams_per_group = %" PRId64 ", groups = %" PRId64 ", rows = %" PRId64,
             a.streams_per_group, a.groups, a.rows);
  return FASTDECODE_OK;
}

// The strides as the kernels use them: 0 for FASTDECODE_REPEAT. The arguments have been checked.
inline void resolve_strides(Given<fastdecode_sample_args>& args) {
  if (args->row_stride == FASTDECODE_REPEAT) args.own().row_stride = 0;
  if (args->noise_stride == FASTDECODE_REPEAT) args.own().noise_stride = 0;
}

// The pointers of a call that has groups.
inline fastdecode_result check_sample_pointers(const fastdecode_sample_args& a) {
  CHECKED(check_pointers({{"logits", a.logits, a.rows > 0},
                          {"token", a.token, true},
                          {"logprob", a.logprob, true},
                          {"kept", a.kept, true},
                          {"status", a.status, true}}));
  CHECKED(check_default_streams(a));
  INVALID_IF(a.sets > 0 && a.set_offsets == nullptr,
             "set_offsets = NULL: must be given with sets = %" PRId64, a.sets);
  INVALID_IF(a.sets == 0 && (a.ranges != nullptr || a.set_offsets != nullptr),
             "sets = 0: must be at least 1 where there are ranges or set_offsets");
  return FASTDECODE_OK;
}

// A parameter of `groups` groups, or one for all of them where the pointer is null.
template <typename Valid>
fastdecode_result check_parameter(const char* name, const float* per_group, float value,
                                  int64_t groups, const char* rule, Valid valid) {
  INVALID_IF(per_group == nullptr && !valid(value), "%s = %g: must be %s", name,
             static_cast<double>(value), rule);
  for (int64_t g = 0; per_group != nullptr && g < groups; ++g) {
    INVALID_IF(!valid(per_group[g]), "%s[%" PRId64 "] = %g: must be %s", name, g,
               static_cast<double>(per_group[g]), rule);
  }
  return FASTDECODE_OK;
}

// The parameters of the first `groups` groups, where arrays are in the host's memory; with 0 only
// what holds for all groups.
inline fastdecode_result check_parameters(const fastdecode_sample_args& a, int64_t groups) {
  const auto in_unit_interval = [](float x) { return x >= 0.0f && x <= 1.0f; };
  CHECKED(check_parameter("temperature", a.temperature, a.temperature_value, groups,
                          "finite and >= 0",
                          [](float x) { return x >= 0.0f && std::isfinite(x); }));
  CHECKED(check_parameter("top_p", a.top_p, a.top_p_value, groups, "in [0, 1]", in_unit_interval));
  CHECKED(check_parameter("min_p", a.min_p, a.min_p_value, groups, "in [0, 1]", in_unit_interval));
  CHECKED(check_parameter("penalty", a.penalty, a.penalty_value, groups, "finite and > 0",
                          [](float x) { return x > 0.0f && std::isfinite(x); }));
  const bool penalises = a.penalty != nullptr || a.penalty_value != 1.0f;
  INVALID_IF(penalises && a.seen == nullptr,
             "seen = NULL: must be given with a penalty, which applies to the tokens seen");
  INVALID_IF(a.contrast_k < 0, "contrast_k = %d: must be at least 0", a.contrast_k);
  INVALID_IF(!in_unit_interval(a.contrast_alpha), "contrast_alpha = %g: must be in [0, 1]",
             static_cast<double>(a.contrast_alpha));
  INVALID_IF(a.contrast_alpha > 0.0f && a.contrast_k == 0,
             "contrast_k = 0: must be at least 1 with contrast_alpha = %g",
             static_cast<double>(a.contrast_alpha));
  return FASTDECODE_OK;
}

inline fastdecode_result check_advance_sizes(const fastdecode_advance_args& a) {
  CHECKED(check_numbers({{"groups", a.groups, 0},
                         {"rows", a.rows, 0},
                         {"streams_per_group", a.streams_per_group, 1},
                         {"capacity", a.capacity, 0, kMaxElements},
                         {"grammar.class_range_count", a.grammar.class_range_count, 0}}));
  CHECKED(check_vocab(a.vocab));
  CHECKED(
      check_array("streams", {{"groups", a.groups}, {"streams_per_group", a.streams_per_group}}));
  if (a.sequences == nullptr) return FASTDECODE_OK;
  return check_array("sequences", {{"groups", a.groups}, {"capacity", a.capacity}});
}

// The grammar's sizes and pointers, and the pointers to the state of groups.
inline fastdecode_result check_advance_pointers(const fastdecode_advance_args& a) {
  const fastdecode_grammar& tables = a.grammar;
  CHECKED(
      check_numbers({{"grammar.modes", tables.modes, 1}, {"grammar.classes", tables.classes, 1}}));
  CHECKED(check_array("grammar.following",
                      {{"grammar.modes", tables.modes}, {"grammar.classes", tables.classes}}));
  return check_pointers(
      {{"grammar.set_of", tables.set_of, true},
       {"grammar.forced", tables.forced, true},
       {"grammar.following", tables.following, true},
       {"grammar.class_ranges", tables.class_ranges, tables.class_range_count > 0},
       {"mode", a.mode, true},
       {"step", a.step, true},
       {"finished", a.finished, true}});
}

inline fastdecode_result check_advance_tokens(const fastdecode_advance_args& a) {
  return check_pointers({{"token", a.token, true}});
}

inline fastdecode_result check_advance_streams(const fastdecode_advance_args& a) {
  if (a.inputs == nullptr && a.lengths == nullptr) return FASTDECODE_OK;
  return check_default_streams(a);
}

// --- sample_advance

// What the grammar and the groups' steps say must not be given as well.
inline fastdecode_result check_sample_of_advance(const fastdecode_sample_args& sample) {
  INVALID_IF(sample.set_index != nullptr,
             "sample->set_index: must be NULL, since the grammar chooses the sets");
  INVALID_IF(sample.step != nullptr,
             "sample->step: must be NULL, since advance->step numbers the tokens");
  INVALID_IF(sample.step_value != 0,
             "sample->step_value = %" PRId64 ": must be 0, since advance->step numbers the tokens",
             sample.step_value);
  return FASTDECODE_OK;
}

// The advance's arguments, with those that it takes from the sample's.
inline fastdecode_advance_args joined(const fastdecode_sample_args& sample,
                                      const fastdecode_advance_args& given) {
  fastdecode_advance_args advance = given;
  advance.groups = sample.groups;
  advance.streams_per_group = sample.streams_per_group;
  advance.streams = sample.streams;
  advance.rows = sample.rows;
  advance.vocab = sample.vocab;
  advance.token = sample.token;
  return advance;
}

inline fastdecode_result check_same_seen(const fastdecode_sample_args& sample,
                                         const fastdecode_advance_args& advance) {
  INVALID_IF(sample.seen != nullptr && sample.seen != advance.seen,
             "sample->seen: must be NULL or advance->seen");
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
