// Checks of a grammar's tables and of the groups that they lead.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set. The message names the
// argument, the value and its index. Of the grammar's tables it checks only what the running groups
// use. `sample`: the checked arguments by which the tokens are drawn, or null if they are given.
fastdecode_result check_advance_args(const fastdecode_advance_args& args,
                                     const fastdecode_sample_args* sample);

}  // namespace fastdecode
