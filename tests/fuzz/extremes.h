// Calls whose integers are changed: to extreme values, or to sizes that are too large together.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>

#include "fuzz.h"

namespace {

// What a field may be.
enum class Kind {
  kCount,    // at least 0 or 1, and at most 2^31 - 1
  kStride,   // at least 0; too large where two rows would have more than 2^47 elements
  kNumber,   // anything
  kThreads,  // not negative
};

struct Field {
  std::string name, instead;  // what a message names: the field, or a value that it makes wrong
  Kind kind;
  int64_t* wide;
  int32_t* narrow;
};

Field field(const char* name, Kind kind, int64_t& at, const char* instead = nullptr) {
  return {name, instead != nullptr ? instead : name, kind, &at, nullptr};
}
Field field(const char* name, Kind kind, int32_t& at) {
  return {name, name, kind, nullptr, &at};
}

constexpr int64_t kValues[] = {INT64_MIN + 1,
                               -(INT64_C(1) << 32),
                               -2,
                               -1,
                               0,
                               INT64_C(1) << 31,
                               INT64_C(1) << 32,
                               (INT64_C(1) << 32) + 1,
                               INT64_C(1) << 47,
                               INT64_C(1) << 61,
                               (INT64_C(1) << 61) + 1,
                               INT64_C(1) << 62,
                               INT64_MAX - 1,
                               INT64_MAX};
constexpr int32_t kNarrowValues[] = {INT32_MIN, -1, 0, INT32_MAX};

struct Random {
  uint64_t state;
  uint64_t below(uint64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % n;
  }
};

// What is done to the fields of a call: those that `product` names, if any, become 2^31 - 1; else
// some become extreme.
struct Change {
  Random random;
  std::vector<const char*> product;
};

// Sets `field` to an extreme value, which must be refused if this returns true.
bool set_extreme(Random& random, const Field& field, bool& zero) {
  if (field.narrow != nullptr) {
    const int32_t value = kNarrowValues[random.below(std::size(kNarrowValues))];
    *field.narrow = value;
    return field.kind == Kind::kThreads && value < 0;
  }
  int64_t value = kValues[random.below(std::size(kValues))];
  // A smaller stride is a good one, if only the arrays were as long.
  if (field.kind == Kind::kStride && value > 0) value |= INT64_C(1) << 47;
  *field.wide = value;
  zero = zero || value == 0;
  return field.kind == Kind::kCount ? value != 0 : field.kind == Kind::kStride && value != 0;
}

// An array with the product of the first two of these sizes is refused by the names of both.
template <typename Call>
void call_with_product(const std::vector<const char*>& names, const std::vector<Field>& fields,
                       Call call) {
  for (const char* name : names) {
    const auto named = [name](const Field& field) { return field.name == name; };
    const auto found = std::find_if(fields.begin(), fields.end(), named);
    CHECK(found != fields.end());
    *found->wide = INT32_MAX;
  }
  CHECK(call() == FASTDECODE_INVALID_ARGUMENT);
  const std::string said = fastdecode_last_error();
  CHECK(said.find("would have more than 2^47 elements") != std::string::npos);
  for (size_t i = 0; i < 2; ++i) CHECK(said.find(names[i]) != std::string::npos);
}

// Changes one to three of the fields and calls. The caller's arguments are then dropped.
template <typename Call>
void change_and_call(Change& change, const std::vector<Field>& fields, Call call) {
  if (!change.product.empty()) return call_with_product(change.product, fields, call);
  Random& random = change.random;
  std::vector<std::string> changed, named;
  bool refused = false, zero = false;
  for (uint64_t n = 1 + random.below(3); n > 0; --n) {
    const Field& one = fields[random.below(fields.size())];
    if (std::find(changed.begin(), changed.end(), one.name) != changed.end()) continue;
    changed.push_back(one.name);
    named.insert(named.end(), {one.name, one.instead});
    refused |= set_extreme(random, one, zero);
  }
  const fastdecode_result result = call();
  CHECK(result == FASTDECODE_OK || result == FASTDECODE_INVALID_ARGUMENT ||
        result == FASTDECODE_OUT_OF_MEMORY);
  if (refused && !zero) CHECK(result == FASTDECODE_INVALID_ARGUMENT);
  if (result == FASTDECODE_OK) return;
  const std::string said = fastdecode_last_error();
  for (const std::string& name : named) {
    if (said.find(name) != std::string::npos) return;
  }
  fprintf(stderr, "changed %s: \"%s\" does not name it\n", changed[0].c_str(), said.c_str());
  abort();
}

}  // namespace
