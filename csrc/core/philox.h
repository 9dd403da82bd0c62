// Gumbel noise g(seed, step, token): Philox4x32-10 (Salmon et al., SC'11), one block per token.
//
//   key     = (seed low 32, seed high 32)
//   counter = (token, 0, step low 32, step high 32)   the second word is reserved
//
// The first two of the four result words make a uniform number u. Bit 31 of word 0 says whether u
// lies above 1/2, the other bits of word 0 are hi, and
//   v = hi * 2^-32 + (word1 >> 1 | 1) * 2^-63   in [2^-63, 1/2]
// is u below 1/2, and 1 - u above. Then E = -log(u), computed as -log1p(-v) above 1/2, and
// g = -log(E). Both tails are resolved to 2^-62, and g lies in (-3.8, 43.7).
#pragma once

#include <stdint.h>

#include "core/numerics.h"

namespace fastdecode {
namespace {

struct PhiloxBlock {
  uint32_t word[4];
};

FASTDECODE_HD inline PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

// Gumbel noise from the first two words of a Philox block.
FASTDECODE_HD inline float gumbel_of(uint32_t word0, uint32_t word1) {
  const float hi = static_cast<float>(static_cast<int32_t>(word0 & 0x7fffffffu));
  const float lo = static_cast<float>(static_cast<int32_t>(word1 >> 1 | 1u));
  const float v = hi * 0x1p-32f + lo * 0x1p-63f;
  const LogArgument lower = reduce_log(v);
  // Above 1/2: log(1 - v). A small v is used as f = -v, so that none of its bits are lost.
  const float w = 1.0f - v;
  const bool halve = w < 0x1.6a09e6p-1f;
  const float upper_f = halve ? (w + w) - 1.0f : -v;
  const float upper_e = halve ? -1.0f : 0.0f;
  const bool upper = static_cast<int32_t>(word0) < 0;
  const float log_u = log_reduced(upper ? upper_f : lower.f, upper ? upper_e : lower.e);
  return -log_f32(-log_u);
}

FASTDECODE_HD inline PhiloxBlock philox_noise(uint64_t seed, uint64_t step, uint32_t token) {
  const PhiloxBlock counter = {
      {token, 0, static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

FASTDECODE_HD inline float gumbel_noise(uint64_t seed, uint64_t step, uint32_t token) {
  const PhiloxBlock block = philox_noise(seed, step, token);
  return gumbel_of(block.word[0], block.word[1]);
}

}  // namespace
}  // namespace fastdecode
