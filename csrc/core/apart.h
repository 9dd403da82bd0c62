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

// The written arrays share memory neither with each other nor with those that are read. Sizes have
// been checked.
inline fastdecode_result check_apart(std::initializer_list<Area> written,
                                     std::initializer_list<Area> read) {
  for (const Area* w = written.begin(); w != written.end(); ++w) {
    for (const Area* other = written.begin(); other != w; ++other) {
      INVALID_IF(w->meets(*other), "%s: must not overlap %s", w->name, other->name);
    }
    for (const Area& other : read) {
      INVALID_IF(w->meets(other), "%s: must not overlap %s", w->name, other.name);
    }
  }
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
