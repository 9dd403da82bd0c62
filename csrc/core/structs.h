// The structs of arguments: their defaults, and the sizes that callers may have compiled. A struct
// gets new fields only at its end, and never in padding, so that its size tells which fields the
// caller has. Shared by the CPU and the CUDA library.
#pragma once

#include <stddef.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "core/error.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

struct StructSizes {
  const char* name;
  size_t first;  // the size in version 2.0, the smallest that is accepted
};

#define FASTDECODE_END_OF(type, field) (offsetof(type, field) + sizeof(type::field))
#define FASTDECODE_STRUCT(type, last)                                                          \
  static_assert(std::is_trivially_copyable_v<type> && offsetof(type, size) == 0);              \
  static_assert(FASTDECODE_END_OF(type, last) % sizeof(size_t) == 0, "no padding may end it"); \
  constexpr StructSizes sizes_of(const type*) {                                                \
    return {#type, FASTDECODE_END_OF(type, last)};                                             \
  }

FASTDECODE_STRUCT(fastdecode_sample_args, status)
FASTDECODE_STRUCT(fastdecode_advance_args, capacity)
FASTDECODE_STRUCT(fastdecode_decode_args, x)
FASTDECODE_STRUCT(fastdecode_rope_append_args, queries)
FASTDECODE_STRUCT(fastdecode_attend_args, out)

#undef FASTDECODE_STRUCT

constexpr size_t kFirstLayerSize = FASTDECODE_END_OF(fastdecode_layer, values);

// The defaults that are not 0.
inline void set_defaults(fastdecode_sample_args* args) {
  args->threads = 1;
  args->streams_per_group = 1;
  args->temperature_value = 1.0f;
  args->top_p_value = 1.0f;
  args->penalty_value = 1.0f;
}

inline void set_defaults(fastdecode_advance_args* args) {
  args->streams_per_group = 1;
}

inline void set_defaults(fastdecode_decode_args* args) {
  args->layer_size = sizeof(fastdecode_layer);
  args->threads = 1;
  args->epsilon = 1e-5f;
  args->qk_epsilon = 1e-5f;
}

inline void set_defaults(fastdecode_rope_append_args* args) {
  args->threads = 1;
  args->epsilon = 1e-5f;
}

inline void set_defaults(fastdecode_attend_args* args) {
  args->threads = 1;
  args->scale = 1.0f;
}

// `what`: the struct's name, as the message has it. `args`: the one whose init function sets
// `size`.
inline fastdecode_result check_size(const char* what, const char* args, const char* field,
                                    size_t size, size_t first, size_t own) {
  if (size > own) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "%s = %zu: this library's %s has %zu bytes; the program was compiled against a "
                "newer fastdecode.h: update the library",
                field, size, what, own);
  }
  if (size < first || size % sizeof(size_t) != 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "%s = %zu: %s has at least %zu bytes; call %s_init, and compile the program again "
                "if it was compiled against version 1 of fastdecode.h",
                field, size, what, first, args);
  }
  return FASTDECODE_OK;
}

// What every init function does. A struct of a size that is refused gets that size, or, if it has
// no room for one, stays as it is: calls refuse it too.
template <typename Args>
fastdecode_result set_up(Args* args, size_t size) {
  const StructSizes sizes = sizes_of(args);
  if (args == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "%s_init: args = NULL: must point to the arguments",
                sizes.name);
  }
  const fastdecode_result result =
      check_size(sizes.name, sizes.name, "size", size, sizes.first, sizeof(Args));
  Args whole;
  std::memset(&whole, 0, sizeof whole);
  set_defaults(&whole);
  whole.size = size;
  if (size >= sizeof(size_t)) std::memcpy(args, &whole, std::min(size, sizeof whole));
  return result;
}

// A caller's arguments as this library's struct: the caller's own, or a copy with the defaults of
// the fields that the caller does not have.
template <typename Args>
class Given {
 public:
  // `name`: what the messages call the pointer.
  fastdecode_result take(const char* name, const Args* given) {
    const StructSizes sizes = sizes_of(given);
    if (given == nullptr) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "%s = NULL: must point to the arguments", name);
    }
    args_ = given;
    if (given->size == sizeof(Args)) return FASTDECODE_OK;
    char field[32];
    std::snprintf(field, sizeof field, "%s->size", name);
    const fastdecode_result result =
        check_size(sizes.name, sizes.name, field, given->size, sizes.first, sizeof(Args));
    if (result != FASTDECODE_OK) return result;
    std::memset(&own_, 0, sizeof own_);
    set_defaults(&own_);
    std::memcpy(&own_, given, given->size);
    own_.size = sizeof own_;
    args_ = &own_;
    return FASTDECODE_OK;
  }
  // A copy that may be changed.
  Args& own() {
    if (args_ != &own_) own_ = *args_;
    args_ = &own_;
    return own_;
  }
  const Args& operator*() const { return *args_; }
  const Args* operator->() const { return args_; }

 private:
  const Args* args_ = nullptr;
  Args own_;  // set only if it is used
};

// Layer i of a step whose layer_size has been checked.
inline fastdecode_layer layer_at(const fastdecode_decode_args& step, int64_t i) {
  fastdecode_layer layer = {};
  std::memcpy(&layer,
              reinterpret_cast<const char*>(step.layers) + static_cast<size_t>(i) * step.layer_size,
              std::min(step.layer_size, sizeof layer));
  return layer;
}

}  // namespace
}  // namespace fastdecode
