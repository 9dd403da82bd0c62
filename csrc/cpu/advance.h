// The grammar as the CPU reads it: what comes next in a group, and what a token does to it.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Both: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_advance_size(const fastdecode_advance_args* args);
// Names the argument, the value and its index. Of the grammar's tables only what the running groups
// use is looked at. `sets`: how many there are to draw from, or -1 if nothing is drawn.
fastdecode_result check_advance_args(const fastdecode_advance_args& args, int64_t sets);

enum class Next { kNothing, kForced, kDrawn };

// What comes next in a running group: nothing, since it is at its end; the token `value`; or one of
// the set `value`.
struct Coming {
  Next next;
  int32_t value;
};
Coming coming(const fastdecode_advance_args& args, int64_t group);

// Appends args.token[group] to a group that is running; a group at its end, or without a token,
// finishes.
void advance_group(const fastdecode_advance_args& args, int64_t group);

}  // namespace fastdecode
