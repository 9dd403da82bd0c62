#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace fastdecode {
namespace {

thread_local char message[512] = "";

}  // namespace

fastdecode_result fail(fastdecode_result result, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return result;
}

}  // namespace fastdecode

extern "C" const char* fastdecode_last_error(void) {
  return fastdecode::message;
}
