// The number types of the C interface: how a value is stored, its float32, and rounding back.
// Every bfloat16 and every float16 is exactly one float32.
//
// Everything is in an unnamed namespace: units built for different instruction sets must never
// share a compiled copy.
#pragma once

#include "core/numerics.h"
#include "fastdecode/fastdecode.h"

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

// rounded_to(x, T{}): the T nearest to x, ties to even. NaN stays NaN.
FASTDECODE_HD inline float rounded_to(float x, float) {
  return x;
}

FASTDECODE_HD inline BFloat16 rounded_to(float x, BFloat16) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

FASTDECODE_HD inline Float16 rounded_to(float x, Float16) {
  const uint32_t bits = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24
    half = static_cast<uint32_t>(
        static_cast<int32_t>(round_even_small(bits_float(magnitude) * 0x1p+24f)));
  } else {
    half = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

// Whether this is a fastdecode_dtype.
constexpr bool is_dtype(int32_t dtype) {
  return dtype >= FASTDECODE_FLOAT32 && dtype <= FASTDECODE_FLOAT16;
}

// Bytes of one value of a fastdecode_dtype.
constexpr int64_t size_of(int32_t dtype) {
  return dtype == FASTDECODE_FLOAT32 ? 4 : 2;
}

// use(T{}) with the type T that stores values of a fastdecode_dtype.
template <typename Use>
auto with_type_of(int32_t dtype, const Use& use) {
  if (dtype == FASTDECODE_FLOAT32) return use(float{});
  if (dtype == FASTDECODE_BFLOAT16) return use(BFloat16{});
  return use(Float16{});
}

}  // namespace
}  // namespace fastdecode
