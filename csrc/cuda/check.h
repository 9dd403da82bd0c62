// Checks of what the host can see of the arguments, before a kernel is launched.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Each: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a message that names the argument.
fastdecode_result check_cuda_sample(const fastdecode_sample_args* args, int64_t largest_set);
// `draws`: of a sample_advance, whose groups, streams and tokens are the sample's.
fastdecode_result check_cuda_advance(const fastdecode_advance_args* args, bool draws);
// `chunks`: blocks that share a group, or 0.
fastdecode_result check_cuda_blocks(int64_t groups, int64_t chunks);
fastdecode_result check_cuda_workspace(const void* workspace, size_t bytes, size_t needed);

}  // namespace fastdecode
