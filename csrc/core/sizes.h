// Checks of sizes: every number between its bounds, and no array with so many elements that the
// arithmetic on places in it could overflow.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "core/error.h"
#include "fastdecode/fastdecode.h"

// Returns what `check` returns if that is not FASTDECODE_OK.
#define CHECKED(check)                              \
  do {                                              \
    const fastdecode_result checked_ = (check);     \
    if (checked_ != FASTDECODE_OK) return checked_; \
  } while (0)

// Returns FASTDECODE_INVALID_ARGUMENT with this message if the condition holds.
#define INVALID_IF(condition, ...) \
  if (condition) return fail(FASTDECODE_INVALID_ARGUMENT, __VA_ARGS__)

namespace fastdecode {
namespace {

constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxElements = int64_t{1} << 47;

struct Number {
  const char* name;
  int64_t value, least, most = kMaxCount;
};

struct Real {
  const char* name;
  float value;
};

struct Size {
  const char* name;
  int64_t value;
};

struct Pointer {
  const char* name;
  const void* pointer;
  bool needed;
};

inline fastdecode_result check_numbers(std::initializer_list<Number> numbers) {
  for (const Number& n : numbers) {
    INVALID_IF(n.value < n.least, "%s = %" PRId64 ": must be at least %" PRId64, n.name, n.value,
               n.least);
    INVALID_IF(n.value > n.most, "%s = %" PRId64 ": must be at most %" PRId64, n.name, n.value,
               n.most);
  }
  return FASTDECODE_OK;
}

// Epsilons and the like.
inline fastdecode_result check_not_negative(std::initializer_list<Real> numbers) {
  for (const Real& n : numbers) {
    INVALID_IF(!(n.value >= 0.0f) || !std::isfinite(n.value), "%s = %g: must be finite and >= 0",
               n.name, static_cast<double>(n.value));
  }
  return FASTDECODE_OK;
}

inline fastdecode_result check_pointers(std::initializer_list<Pointer> pointers) {
  for (const Pointer& p : pointers) {
    INVALID_IF(p.needed && p.pointer == nullptr, "%s = NULL: must not be", p.name);
  }
  return FASTDECODE_OK;
}

// An array of the product of these sizes, none of which is negative.
inline fastdecode_result check_array(const char* array, std::initializer_list<Size> sizes) {
  int64_t elements = 1;
  bool fits = true;
  for (const Size& s : sizes) {
    if (s.value == 0) return FASTDECODE_OK;
    fits = fits && s.value <= kMaxElements / elements;
    if (fits) elements *= s.value;
  }
  if (fits) return FASTDECODE_OK;
  char named[256] = "";
  int used = 0;
  for (const Size& s : sizes) {
    used += std::snprintf(named + used, sizeof named - static_cast<size_t>(used), "%s%s = %" PRId64,
                          used > 0 ? ", " : "", s.name, s.value);
    if (used >= static_cast<int>(sizeof named)) break;
  }
  return fail(FASTDECODE_INVALID_ARGUMENT,
              "%s: %s would have more than 2^47 elements; the sizes must be smaller", named, array);
}

}  // namespace
}  // namespace fastdecode
