// Validation of the arguments of fastdecode_decode_step.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_decode_args(const fastdecode_decode_args& args);

}  // namespace fastdecode
