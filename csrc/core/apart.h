// Whether arrays that are written share memory with others of a call.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/sizes.h"

namespace fastdecode {
namespace {

// `elements` of `element` bytes each. Null or empty: it shares nothing.
struct Area {
  const char* name;
  const void* begin;
  int64_t elements, element;

  bool meets(const Area& other) const {
    if (begin == nullptr || other.begin == nullptr || elements <= 0 || other.elements <= 0) {
      return false;
    }
    const uintptr_t a = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t b = reinterpret_cast<uintptr_t>(other.begin);
    return a < b ? b - a < static_cast<uintptr_t>(elements * element)
                 : a - b < static_cast<uintptr_t>(other.elements * other.element);
  }
};

using List = std::initializer_list<Area>;

// No array of the first shares memory with one of the second: both are any container of areas.
// Sizes have been checked.
template <typename Written = List, typename Others = List>
fastdecode_result check_apart(const Written& written, const Others& others) {
  for (const Area& w : written) {
    for (const Area& other : others) {
      INVALID_IF(w.meets(other), "%s: must not overlap %s", w.name, other.name);
    }
  }
  return FASTDECODE_OK;
}

// Nor do these with each other.
template <typename Written>
fastdecode_result check_all_apart(const Written& written) {
  for (const Area* w = written.begin(); w != written.end(); ++w) {
    for (const Area* other = written.begin(); other != w; ++other) {
      INVALID_IF(w->meets(*other), "%s: must not overlap %s", w->name, other->name);
    }
  }
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
