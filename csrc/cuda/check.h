// The checks before a kernel is launched, of what the host can see of the arguments. Each returns
// FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a message that names the argument.
#pragma once

#include "core/check.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxBlocks = kMaxCount;  // of a launch

// Of what the size of the workspace depends on.
inline fastdecode_result check_cuda_sizes(const fastdecode_sample_args& a, int64_t largest_set) {
  CHECKED(check_numbers({{"groups", a.groups, 0}, {"largest_set", largest_set, 0, INT64_MAX}}));
  return check_vocab(a.vocab);
}

inline fastdecode_result check_cuda_sample(const fastdecode_sample_args& a, int64_t largest_set) {
  CHECKED(check_dtype(a.dtype));
  CHECKED(check_sample_sizes(a));
  CHECKED(check_cuda_sizes(a, largest_set));
  if (a.groups == 0) return FASTDECODE_OK;
  CHECKED(check_sample_pointers(a));
  return check_parameters(a, 0);
}

// `draws`: the arguments are a sample_advance's, and the tokens are drawn.
inline fastdecode_result check_cuda_advance(const fastdecode_advance_args& a, bool draws) {
  CHECKED(check_advance_sizes(a));
  if (a.groups == 0) return FASTDECODE_OK;
  CHECKED(check_advance_pointers(a));
  if (!draws) CHECKED(check_advance_tokens(a));
  return check_advance_streams(a);
}

// `chunks`: how many blocks share a group, or 0.
inline fastdecode_result check_cuda_blocks(int64_t groups, int64_t chunks) {
  INVALID_IF(chunks > 0 && groups > kMaxBlocks / chunks,
             "groups = %" PRId64 ": must be at most %" PRId64 " for sets of this size", groups,
             kMaxBlocks / chunks);
  return FASTDECODE_OK;
}

inline fastdecode_result check_cuda_workspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return FASTDECODE_OK;
  INVALID_IF(workspace == nullptr || bytes < needed,
             "workspace_bytes = %zu: %zu are needed; ask fastdecode_cuda_workspace",
             workspace == nullptr ? size_t{0} : bytes, needed);
  INVALID_IF(reinterpret_cast<uintptr_t>(workspace) % 256 != 0,
             "workspace = %p: must be a multiple of 256", workspace);
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
