// The message that fastdecode_last_error returns: one per thread.
#pragma once

#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Formats the message and returns `result`, so that a check can `return fail(...)`.
__attribute__((format(printf, 2, 3))) fastdecode_result fail(fastdecode_result result,
                                                             const char* format, ...);

}  // namespace fastdecode
