// exp, log and probability masses of the sampling contract: float32 polynomials with a fixed order
// of separate multiplications and additions. Compile with -ffp-contract=off (nvcc: -fmad=false).
// Every backend computes the same bits, so a change of one bit here changes the contract.
// fastdecode/ops/numerics.py has the same functions in torch.
//
// Everything is in an unnamed namespace: units built for different instruction sets must never
// share a compiled copy.
#pragma once

#include <stdint.h>
#include <string.h>

// nvcc compiles these functions for the GPU too.
#if defined(__CUDACC__)
#define FASTDECODE_HD __host__ __device__
#else
#define FASTDECODE_HD
#endif

namespace fastdecode {
namespace {

FASTDECODE_HD inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTDECODE_HD inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Nearest integer, ties to even, for |x| < 2^22.
FASTDECODE_HD inline float round_even_small(float x) {
  return (x + 0x1.8p+23f) - 0x1.8p+23f;
}

// e^x for x <= 0, within 1 ulp; exactly 1 at 0; 0 below -86 (so no result is subnormal).
FASTDECODE_HD inline float exp_f32(float x) {
  const float c = x < -86.0f ? -86.0f : x;
  const float n = round_even_small(c * 0x1.715476p+0f);
  float r = c - n * 0x1.63p-1f;
  r = r - n * -0x1.bd0106p-13f;
  float p = 0x1.a0d2cep-13f;
  p = p * r + 0x1.6e879cp-10f;
  p = p * r + 0x1.11121p-7f;
  p = p * r + 0x1.555382p-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  p = p * (r * r);
  p = p + r;
  p = p + 1.0f;
  // p = e^r; the scale is 2^n.
  const float scale = bits_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x < -86.0f ? 0.0f : p * scale;
}

// log((1 + f) * 2^e) for 1 + f in [sqrt(1/2), sqrt(2)], e integral.
FASTDECODE_HD inline float log_reduced(float f, float e) {
  const float s = f * f;
  float p = 0x1.204376p-4f;
  p = p * f + -0x1.d7a37p-4f;
  p = p * f + 0x1.de4a34p-4f;
  p = p * f + -0x1.fcba9ep-4f;
  p = p * f + 0x1.23d37ep-3f;
  p = p * f + -0x1.555cap-3f;
  p = p * f + 0x1.999d58p-3f;
  p = p * f + -0x1.fffff8p-3f;
  p = p * f + 0x1.555554p-2f;
  p = p * (f * s);
  p = p + e * -0x1.bd0106p-13f;
  p = p - 0.5f * s;
  p = f + p;
  return p + e * 0x1.63p-1f;
}

struct LogArgument {
  float f, e;
};

// x = (1 + f) * 2^e with 1 + f in [sqrt(1/2), sqrt(2)), for positive normal x.
FASTDECODE_HD inline LogArgument reduce_log(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t shifted = float_bits(x) - kSqrtHalf;
  const float m = bits_float((shifted & 0x007fffffu) + kSqrtHalf);
  return LogArgument{m - 1.0f, static_cast<float>(static_cast<int32_t>(shifted) >> 23)};
}

// Natural logarithm of a positive normal x, within 2 ulp.
FASTDECODE_HD inline float log_f32(float x) {
  const LogArgument reduced = reduce_log(x);
  return log_reduced(reduced.f, reduced.e);
}

// round(p * 2^40), ties to even, for 0 <= p <= 1: probabilities as integers, whose sum is exact in
// any order.
FASTDECODE_HD inline int64_t mass_of(float p) {
  const float m = p * 0x1p+40f;
  // A float32 above 2^23 is an integer already.
  const float rounded = m < 0x1p+23f ? (m + 0x1p+23f) - 0x1p+23f : m;
  return static_cast<int64_t>(rounded);
}

// A token this far below the largest z has no mass: mass_of(exp_f32(kNoMass)) is 0.
constexpr float kNoMass = -29.0f;

// ceil(top_p * total), the product rounded once in float64, and at least 1: an integer mass is
// below top_p * total exactly when it is below this limit, and the limit is never reached by
// nothing, so that the largest z is always kept.
FASTDECODE_HD inline uint64_t top_p_limit(float top_p, uint64_t total) {
  const double product = static_cast<double>(top_p) * static_cast<double>(total);
  const uint64_t floor = static_cast<uint64_t>(product);
  const uint64_t ceiling = floor + (static_cast<double>(floor) < product ? 1 : 0);
  return ceiling > 1 ? ceiling : 1;
}

// Log-probability of a token with this z among tokens whose masses sum to `mass`. `top` is the
// largest z.
FASTDECODE_HD inline float logprob_of(float z, float top, uint64_t mass) {
  return (z - top) - log_f32(static_cast<float>(static_cast<int64_t>(mass)) * 0x1p-40f);
}

// An integer that orders as the float does: a < b exactly when order_key(a) < order_key(b). Not for
// -0, whose key is below that of +0.
FASTDECODE_HD inline uint32_t order_key(float x) {
  const uint32_t bits = float_bits(x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// The inverse of order_key.
FASTDECODE_HD inline float float_of_key(uint32_t key) {
  return bits_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

}  // namespace
}  // namespace fastdecode
