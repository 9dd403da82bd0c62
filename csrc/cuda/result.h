// Step 8 of the contract for one token: its noise, and the order of the sums.
#pragma once

#include "core/philox.h"
#include "cuda/group.h"

namespace fastdecode {
namespace {

constexpr uint64_t kWrong = uint64_t{1} << 32;  // of a group that gets no token; above every key

// An integer that orders tokens: a larger z + noise has the larger rank and, of equal sums, a
// smaller position (`place`). NaN counts as -inf.
FASTDECODE_DEVICE inline uint64_t rank_of(float value, int32_t place) {
  const uint32_t key = order_key(value == value ? value + 0.0f : -kInf);
  return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(place);
}

FASTDECODE_DEVICE inline int32_t place_of(uint64_t rank) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank));
}

FASTDECODE_DEVICE inline float noise_of(const Group& g, int32_t id) {
  return g.noise != nullptr ? g.noise[id] : gumbel_noise(g.seed, g.step, static_cast<uint32_t>(id));
}

}  // namespace
}  // namespace fastdecode
