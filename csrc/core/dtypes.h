// Logits as they are stored, and the float32 of one: every value of a narrower type is one.
#pragma once

#include "core/numerics.h"

namespace fastdecode {
namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

FASTDECODE_HD inline float float_of(float x) {
  return x;
}

FASTDECODE_HD inline float float_of(BFloat16 x) {
  return bits_float(static_cast<uint32_t>(x.bits) << 16);
}

FASTDECODE_HD inline float float_of(Float16 x) {
  const uint32_t h = x.bits;
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t rebias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const float normal = bits_float((magnitude << 13) + rebias);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return bits_float(sign | float_bits(magnitude < 0x0400u ? subnormal : normal));
}

}  // namespace
}  // namespace fastdecode
