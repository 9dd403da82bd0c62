// Arrays of float32, and of the dtypes that weights, keys and values are stored in.
#pragma once

#include "fuzz.h"

namespace fuzz {

// Numbers of small magnitude, all finite.
inline Exact<float> filled(int64_t n, Random& random) {
  Exact<float> array(n);
  for (int64_t i = 0; i < n; ++i) {
    array[i] = (static_cast<float>(random.below(4001)) - 2000.0f) / 1024.0f;
  }
  return array;
}

inline int64_t value_size(int32_t dtype) {
  return dtype == FASTDECODE_FLOAT32 ? 4 : 2;
}

// Bits of a number of a dtype: 0, or of a magnitude in [2^-7, 2).
inline uint32_t random_bits(int32_t dtype, Random& random) {
  const uint64_t word = random.next();
  const uint32_t sign = word & 1, low = static_cast<uint32_t>(word >> 32);
  const uint32_t below = static_cast<uint32_t>((word >> 8) % 8);  // exponent: 2^0 .. 2^-7
  if ((word >> 16) % 32 == 0) return 0;
  if (dtype == FASTDECODE_FLOAT16) return sign << 15 | (15 - below) << 10 | (low & 0x3ffu);
  const uint32_t bits = sign << 31 | (127 - below) << 23 | (low & 0x7fffffu);
  return dtype == FASTDECODE_FLOAT32 ? bits : bits >> 16;
}

inline void put(int32_t dtype, uint8_t* at, int64_t i, uint32_t bits) {
  const size_t size = static_cast<size_t>(value_size(dtype));
  memcpy(at + i * value_size(dtype), &bits, size);  // little-endian
}

// n random numbers of a dtype.
inline Exact<uint8_t> stored(int32_t dtype, int64_t n, Random& random) {
  Exact<uint8_t> bytes(n * value_size(dtype));
  for (int64_t i = 0; i < n; ++i) put(dtype, bytes.get(), i, random_bits(dtype, random));
  return bytes;
}

// Number i of a dtype; of float16 no infinity and no NaN.
inline double number(int32_t dtype, const uint8_t* at, int64_t i) {
  uint32_t bits = 0;
  memcpy(&bits, at + i * value_size(dtype), static_cast<size_t>(value_size(dtype)));
  if (dtype == FASTDECODE_FLOAT32) return Bytes::float_of(bits);
  if (dtype == FASTDECODE_BFLOAT16) return Bytes::float_of(bits << 16);
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (bits >> 15) != 0 ? -magnitude : magnitude;
}

// To the nearest bfloat16, ties to even.
inline float to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return Bytes::float_of((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

}  // namespace fuzz
