// The checks of fastdecode_sample's arguments, which come before any output is written.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with a message that names the argument, the value
// and its index in the words of fastdecode/ops/sample/checks.py.
fastdecode_result check_sample_args(const fastdecode_sample_args& args);

}  // namespace fastdecode
