// Checks of arguments that the CPU and the CUDA functions share: what the host can see of a call,
// wherever the arrays lie. Each returns FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a
// message that names the argument.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstring>

#include "core/dtypes.h"
#include "core/error.h"
#include "core/sample_group.h"
#include "fastdecode/fastdecode.h"

// Returns what `check` returns if that is not FASTDECODE_OK.
#define CHECKED(check)                              \
  do {                                              \
    const fastdecode_result checked_ = (check);     \
    if (checked_ != FASTDECODE_OK) return checked_; \
  } while (0)

// Returns FASTDECODE_INVALID_ARGUMENT with this message if the condition holds.
#define INVALID_IF(condition, ...) \
  if (condition) return fail(FASTDECODE_INVALID_ARGUMENT, __VA_ARGS__)

namespace fastdecode {
namespace {

// What every init function begins with: all zero, and the size.
template <typename Args>
void set_up(Args* args) {
  std::memset(args, 0, sizeof *args);
  args->size = sizeof *args;
}

// A struct of arguments: given, and set up by this library's `init`. Each has only one layout yet;
// a later one will be larger, and an older caller's struct will get defaults for what it lacks.
template <typename Args>
fastdecode_result check_struct(const Args* args, const char* init) {
  INVALID_IF(args == nullptr, "args = NULL: must point to the arguments");
  INVALID_IF(args->size != sizeof *args, "args->size = %zu: this library expects %zu; call %s",
             args->size, sizeof *args, init);
  return FASTDECODE_OK;
}

inline fastdecode_result check_sample_dtype(const fastdecode_sample_args& a) {
  INVALID_IF(!is_dtype(a.dtype), "dtype = %d: must be a fastdecode_dtype", a.dtype);
  return FASTDECODE_OK;
}

inline fastdecode_result check_vocab(int64_t vocab) {
  INVALID_IF(vocab < 0 || vocab > kMaxVocab, "vocab = %" PRId64 ": must be in [0, %" PRId64 "]",
             vocab, kMaxVocab);
  return FASTDECODE_OK;
}

// Of fastdecode_sample_args or fastdecode_advance_args.
template <typename Args>
fastdecode_result check_default_streams(const Args& a) {
  INVALID_IF(a.streams == nullptr && (a.streams_per_group != 1 || a.groups > a.rows),
             "streams = NULL: needs streams_per_group = 1 and groups <= rows");
  return FASTDECODE_OK;
}

// The pointers of a call that has groups.
inline fastdecode_result check_sample_pointers(const fastdecode_sample_args& a) {
  INVALID_IF(a.logits == nullptr && a.rows > 0 && a.vocab > 0,
             "logits = NULL: must point to the logits");
  INVALID_IF(a.token == nullptr || a.logprob == nullptr || a.kept == nullptr || a.status == nullptr,
             "token, logprob, kept and status must not be NULL");
  CHECKED(check_default_streams(a));
  INVALID_IF(a.sets > 0 && a.set_offsets == nullptr,
             "set_offsets = NULL: must be given with sets > 0");
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
  INVALID_IF(a.contrast_k < 0, "contrast_k = %d: must be >= 0", a.contrast_k);
  INVALID_IF(a.contrast_k > 0 && !in_unit_interval(a.contrast_alpha),
             "contrast_alpha = %g: must be in [0, 1]", static_cast<double>(a.contrast_alpha));
  return FASTDECODE_OK;
}

inline fastdecode_result check_advance_sizes(const fastdecode_advance_args& a) {
  INVALID_IF(a.groups < 0 || a.rows < 0 || a.streams_per_group < 0 || a.vocab < 0 ||
                 a.capacity < 0 || a.grammar.class_range_count < 0,
             "groups, rows, streams_per_group, vocab, capacity and class_range_count must be >= 0");
  return FASTDECODE_OK;
}

// The grammar's pointers, and those to the state of groups.
inline fastdecode_result check_advance_pointers(const fastdecode_advance_args& a) {
  const fastdecode_grammar& tables = a.grammar;
  INVALID_IF(tables.modes < 1 || tables.classes < 1,
             "grammar.modes = %" PRId64 ", grammar.classes = %" PRId64 ": must be at least 1",
             tables.modes, tables.classes);
  INVALID_IF(tables.set_of == nullptr || tables.forced == nullptr || tables.following == nullptr,
             "grammar.set_of, grammar.forced and grammar.following must not be NULL");
  INVALID_IF(tables.class_ranges == nullptr && tables.class_range_count > 0,
             "grammar.class_ranges = NULL: must be given with class_range_count > 0");
  INVALID_IF(a.mode == nullptr || a.step == nullptr || a.finished == nullptr,
             "mode, step and finished must not be NULL");
  return FASTDECODE_OK;
}

inline fastdecode_result check_advance_tokens(const fastdecode_advance_args& a) {
  INVALID_IF(a.token == nullptr, "token = NULL: must point to the tokens");
  return FASTDECODE_OK;
}

inline fastdecode_result check_advance_streams(const fastdecode_advance_args& a) {
  if (a.inputs == nullptr && a.lengths == nullptr) return FASTDECODE_OK;
  return check_default_streams(a);
}

// --- sample_advance

// What the grammar and the groups' steps say must not be given as well.
inline fastdecode_result check_sample_of_advance(const fastdecode_sample_args& sample) {
  INVALID_IF(sample.set_index != nullptr || sample.step != nullptr,
             "sample->set_index and sample->step must be NULL: the grammar and the steps of the "
             "groups take their place");
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
             "sample->seen must be NULL or advance->seen");
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
