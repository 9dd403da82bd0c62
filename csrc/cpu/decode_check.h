// The checks of the arguments of a decode step and of its operations.
#pragma once

#include <initializer_list>

#include "core/check.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {

struct Number {
  const char* name;
  int64_t value, least;
};

struct Pointer {
  const char* name;
  const void* pointer;
  bool needed;
};

// Each: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_numbers(std::initializer_list<Number> numbers);
fastdecode_result check_pointers(std::initializer_list<Pointer> pointers);
fastdecode_result check_dtype(int32_t dtype);
fastdecode_result check_decode_args(const fastdecode_decode_args& args);
fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& args);
fastdecode_result check_attend_args(const fastdecode_attend_args& args);

}  // namespace fastdecode
