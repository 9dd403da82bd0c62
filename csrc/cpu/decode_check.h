// Validation of the arguments of a decode step and of its operations.
#pragma once

#include <stddef.h>

#include <initializer_list>

#include "fastdecode/fastdecode.h"

// Returns what `check` returns if that is not FASTDECODE_OK.
#define CHECKED(check)                              \
  do {                                              \
    const fastdecode_result checked_ = (check);     \
    if (checked_ != FASTDECODE_OK) return checked_; \
  } while (0)

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

// All: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_numbers(std::initializer_list<Number> numbers);
fastdecode_result check_pointers(std::initializer_list<Pointer> pointers);
fastdecode_result check_size(size_t size, size_t expected, const char* init);
fastdecode_result check_dtype(int32_t dtype);
fastdecode_result check_decode_args(const fastdecode_decode_args& args);
fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& args);
fastdecode_result check_attend_args(const fastdecode_attend_args& args);

}  // namespace fastdecode
