// The checks of the arguments of a decode step and of its operations.
#pragma once

#include "core/check.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Each: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_decode_args(const fastdecode_decode_args& args);
fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& args);
fastdecode_result check_attend_args(const fastdecode_attend_args& args);

}  // namespace fastdecode
