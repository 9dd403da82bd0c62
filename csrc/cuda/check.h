// The checks before a kernel is launched. They cover what the host can see of the arguments.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Each: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a message that names the argument.
// Of what the size of the workspace depends on.
fastdecode_result check_cuda_sizes(const fastdecode_sample_args& args, int64_t largest_set);
fastdecode_result check_cuda_sample(const fastdecode_sample_args& args, int64_t largest_set);
// `draws`: the arguments are a sample_advance's, and the tokens are drawn.
fastdecode_result check_cuda_advance(const fastdecode_advance_args& args, bool draws);
// `chunks`: how many blocks share a group, or 0.
fastdecode_result check_cuda_blocks(int64_t groups, int64_t chunks);
fastdecode_result check_cuda_workspace(const void* workspace, size_t bytes, size_t needed);

}  // namespace fastdecode
