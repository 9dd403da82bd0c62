#include "cuda/check.h"

#include "core/check.h"

namespace fastdecode {
namespace {

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of a launch

fastdecode_result check_group_count(int64_t groups) {
  INVALID_IF(groups > kMaxBlocks, "groups = %" PRId64 ": must be at most %" PRId64, groups,
             kMaxBlocks);
  return FASTDECODE_OK;
}

}  // namespace

fastdecode_result check_cuda_sample(const fastdecode_sample_args* args, int64_t largest_set) {
  CHECKED(check_struct(args, "fastdecode_sample_args_init"));
  const fastdecode_sample_args& a = *args;
  CHECKED(check_sample_dtype(a));
  INVALID_IF(a.rows < 0 || a.groups < 0 || a.streams_per_group < 0 || a.sets < 0,
             "rows, groups, streams_per_group and sets must be >= 0");
  CHECKED(check_vocab(a.vocab));
  CHECKED(check_group_count(a.groups));
  INVALID_IF(largest_set < 0, "largest_set = %" PRId64 ": must be >= 0", largest_set);
  if (a.groups == 0) return FASTDECODE_OK;
  CHECKED(check_sample_pointers(a));
  return check_parameters(a, 0);
}

fastdecode_result check_cuda_advance(const fastdecode_advance_args* args, bool draws) {
  CHECKED(check_struct(args, "fastdecode_advance_args_init"));
  const fastdecode_advance_args& a = *args;
  CHECKED(check_advance_sizes(a));
  CHECKED(check_group_count(a.groups));
  if (a.groups == 0) return FASTDECODE_OK;
  CHECKED(check_advance_pointers(a));
  if (!draws) CHECKED(check_advance_tokens(a));
  return check_advance_streams(a);
}

fastdecode_result check_cuda_blocks(int64_t groups, int64_t chunks) {
  INVALID_IF(chunks > 0 && groups > kMaxBlocks / chunks,
             "groups = %" PRId64 ": must be at most %" PRId64 " for sets of this size", groups,
             kMaxBlocks / chunks);
  return FASTDECODE_OK;
}

fastdecode_result check_cuda_workspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return FASTDECODE_OK;
  INVALID_IF(workspace == nullptr || bytes < needed,
             "workspace_bytes = %zu: %zu are needed; ask fastdecode_cuda_workspace",
             workspace == nullptr ? size_t{0} : bytes, needed);
  INVALID_IF(reinterpret_cast<uintptr_t>(workspace) % 256 != 0,
             "workspace = %p: must be a multiple of 256", workspace);
  return FASTDECODE_OK;
}

}  // namespace fastdecode
