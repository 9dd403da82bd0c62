// Steps 7 and 8 for one id, and what is written of a group.
#pragma once

#include "core/philox.h"
#include "cuda/group.h"

namespace fastdecode {
namespace {

constexpr uint64_t kWrong = uint64_t{1} << 32;  // above every key

FASTDECODE_DEVICE inline void write(const fastdecode_sample_args& a, int64_t group, int64_t token,
                                    float logprob, int32_t kept, int32_t status) {
  a.token[group] = token;
  a.logprob[group] = logprob;
  a.kept[group] = kept;
  a.status[group] = status;
}

FASTDECODE_DEVICE inline void write_none(const fastdecode_sample_args& a, int64_t group,
                                         int32_t status) {
  write(a, group, -1, -kInf, 0, status);
}

// Orders by z + noise, and among equals the lesser place first; NaN counts as -inf.
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

FASTDECODE_DEVICE inline float logprob_of(float z, float top, uint64_t mass) {
  return (z - top) - log_f32(static_cast<float>(static_cast<int64_t>(mass)) * 0x1p-40f);
}

}  // namespace
}  // namespace fastdecode
