#include "cuda/check.h"

#include <cinttypes>
#include <cmath>

#include "cpu/error.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of a launch

#define RETURN_IF(condition, ...) \
  if (condition) return fail(FASTDECODE_INVALID_ARGUMENT, __VA_ARGS__)

fastdecode_result check_number(const char* name, const void* per_group, float value, bool valid,
                               const char* rule) {
  RETURN_IF(per_group == nullptr && !valid, "%s = %g: must be %s", name, value, rule);
  return FASTDECODE_OK;
}

bool in_unit_interval(float x) {
  return x >= 0.0f && x <= 1.0f;
}

fastdecode_result check_parameters(const fastdecode_sample_args& a) {
  const float t = a.temperature_value, penalty = a.penalty_value;
  fastdecode_result result = check_number("temperature", a.temperature, t,
                                          t >= 0.0f && std::isfinite(t), "finite and >= 0");
  if (result == FASTDECODE_OK) {
    result =
        check_number("top_p", a.top_p, a.top_p_value, in_unit_interval(a.top_p_value), "in [0, 1]");
  }
  if (result == FASTDECODE_OK) {
    result =
        check_number("min_p", a.min_p, a.min_p_value, in_unit_interval(a.min_p_value), "in [0, 1]");
  }
  if (result == FASTDECODE_OK) {
    result = check_number("penalty", a.penalty, penalty, penalty > 0.0f && std::isfinite(penalty),
                          "finite and > 0");
  }
  if (result != FASTDECODE_OK) return result;
  RETURN_IF(a.contrast_k < 0, "contrast_k = %d: must be >= 0", a.contrast_k);
  RETURN_IF(a.contrast_k > 0 && !in_unit_interval(a.contrast_alpha),
            "contrast_alpha = %g: must be in [0, 1]", a.contrast_alpha);
  return FASTDECODE_OK;
}

fastdecode_result check_grammar(const fastdecode_grammar& tables) {
  RETURN_IF(tables.modes < 1 || tables.classes < 1,
            "grammar.modes = %" PRId64 ", grammar.classes = %" PRId64 ": must be at least 1",
            tables.modes, tables.classes);
  RETURN_IF(tables.set_of == nullptr || tables.forced == nullptr || tables.following == nullptr,
            "grammar.set_of, grammar.forced and grammar.following must not be NULL");
  RETURN_IF(tables.class_ranges == nullptr && tables.class_range_count > 0,
            "grammar.class_ranges = NULL: must be given with class_range_count > 0");
  return FASTDECODE_OK;
}

}  // namespace

fastdecode_result check_cuda_sample(const fastdecode_sample_args* args, int64_t largest_set) {
  RETURN_IF(args == nullptr, "args = NULL: must point to the arguments");
  RETURN_IF(args->size != sizeof *args,
            "args->size = %zu: this library expects %zu; call fastdecode_sample_args_init",
            args->size, sizeof *args);
  const fastdecode_sample_args& a = *args;
  RETURN_IF(a.dtype < FASTDECODE_FLOAT32 || a.dtype > FASTDECODE_FLOAT16,
            "dtype = %d: must be a fastdecode_dtype", a.dtype);
  RETURN_IF(a.rows < 0 || a.groups < 0 || a.streams_per_group < 0 || a.sets < 0,
            "rows, groups, streams_per_group and sets must be >= 0");
  RETURN_IF(a.vocab < 0 || a.vocab > kMaxVocab, "vocab = %" PRId64 ": must be in [0, %" PRId64 "]",
            a.vocab, kMaxVocab);
  RETURN_IF(a.groups > kMaxBlocks, "groups = %" PRId64 ": must be at most %" PRId64, a.groups,
            kMaxBlocks);
  RETURN_IF(largest_set < 0, "largest_set = %" PRId64 ": must be >= 0", largest_set);
  if (a.groups == 0) return FASTDECODE_OK;
  RETURN_IF(a.logits == nullptr && a.rows > 0 && a.vocab > 0,
            "logits = NULL: must point to the logits");
  RETURN_IF(a.token == nullptr || a.logprob == nullptr || a.kept == nullptr || a.status == nullptr,
            "token, logprob, kept and status must not be NULL");
  RETURN_IF(a.streams == nullptr && (a.streams_per_group != 1 || a.groups > a.rows),
            "streams = NULL: needs streams_per_group = 1 and groups <= rows");
  RETURN_IF(a.sets > 0 && a.set_offsets == nullptr,
            "set_offsets = NULL: must be given with sets > 0");
  return check_parameters(a);
}

fastdecode_result check_cuda_advance(const fastdecode_advance_args* args, bool draws) {
  RETURN_IF(args == nullptr, "args = NULL: must point to the arguments");
  RETURN_IF(args->size != sizeof *args,
            "args->size = %zu: this library expects %zu; call fastdecode_advance_args_init",
            args->size, sizeof *args);
  const fastdecode_advance_args& a = *args;
  RETURN_IF(a.groups < 0 || a.rows < 0 || a.streams_per_group < 0 || a.vocab < 0 ||
                a.capacity < 0 || a.grammar.class_range_count < 0,
            "groups, rows, streams_per_group, vocab, capacity and class_range_count must be >= 0");
  RETURN_IF(a.groups > kMaxBlocks, "groups = %" PRId64 ": must be at most %" PRId64, a.groups,
            kMaxBlocks);
  if (a.groups == 0) return FASTDECODE_OK;
  const fastdecode_result result = check_grammar(a.grammar);
  if (result != FASTDECODE_OK) return result;
  RETURN_IF(a.mode == nullptr || a.step == nullptr || a.finished == nullptr,
            "mode, step and finished must not be NULL");
  RETURN_IF(!draws && a.token == nullptr, "token = NULL: must point to the tokens");
  RETURN_IF(a.streams == nullptr && (a.inputs != nullptr || a.lengths != nullptr) &&
                (a.streams_per_group != 1 || a.groups > a.rows),
            "streams = NULL: needs streams_per_group = 1 and groups <= rows");
  return FASTDECODE_OK;
}

fastdecode_result check_cuda_blocks(int64_t groups, int64_t chunks) {
  RETURN_IF(chunks > 0 && groups > kMaxBlocks / chunks,
            "groups = %" PRId64 ": must be at most %" PRId64 " for sets of this size", groups,
            kMaxBlocks / chunks);
  return FASTDECODE_OK;
}

fastdecode_result check_cuda_workspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return FASTDECODE_OK;
  RETURN_IF(workspace == nullptr || bytes < needed,
            "workspace_bytes = %zu: %zu are needed; ask fastdecode_cuda_workspace",
            workspace == nullptr ? size_t{0} : bytes, needed);
  RETURN_IF(reinterpret_cast<uintptr_t>(workspace) % 256 != 0,
            "workspace = %p: must be a multiple of 256", workspace);
  return FASTDECODE_OK;
}

}  // namespace fastdecode
