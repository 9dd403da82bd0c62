// Checks of a grammar's tables and of the groups that they lead.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set. The message names the
// argument, the value and its index. Of the grammar's tables it checks only what the running groups
// use. `sets`: how many sets there are to draw from, or -1 if no token is drawn.
fastdecode_result check_advance_args(const fastdecode_advance_args& args, int64_t sets);

}  // namespace fastdecode
