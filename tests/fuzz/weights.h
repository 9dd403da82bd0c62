// Matrices of every fastdecode_weight_type, and their values as fastdecode.h describes them.
#pragma once

#include <memory>

#include "values.h"

namespace fuzz {

// Each array is as long as it must be and no longer.
struct Weights {
  fastdecode_weights how = {};
  int64_t features = 0, k = 0;
  Exact<uint8_t> data, scale, offset;

  int64_t groups() const {
    return how.type == FASTDECODE_WEIGHTS_INT4 ? (k - 1) / how.group + 1 : 1;
  }
  int64_t row_bytes() const { return features > 0 ? data.size() / features : 0; }
  int64_t panel_of(int64_t f) const { return (how.first + f) / 16; }
  int64_t lane_of(int64_t f) const { return (how.first + f) % 16; }
};

inline bool is_small(int32_t type) {
  return type >= FASTDECODE_WEIGHTS_INT8;
}

inline bool in_panels(int32_t type) {
  return type == FASTDECODE_WEIGHTS_INT4 || type == FASTDECODE_WEIGHTS_INT8X16;
}

// What k must be a multiple of.
inline int64_t block_of(int32_t type) {
  return type >= FASTDECODE_WEIGHTS_INT4 ? 32 : 1;
}

// A factor: sometimes 0 or of the largest and the smallest magnitudes; if `wild`, also none at all.
inline float random_scale(Random& random, bool wild) {
  const uint64_t kind = random.below(16);
  if (kind == 0) return 0.0f;
  if (kind == 1) return 6e-8f;
  if (wild && kind < 5) return kind == 2 ? INFINITY : kind == 3 ? -INFINITY : NAN;
  return (static_cast<float>(random.below(2001)) - 1000.0f) / 65536.0f;
}

// To float16, of what random_scale gives.
inline uint16_t to_float16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7e00;
  if (std::isinf(x)) return sign | 0x7c00;
  int exponent;
  const float fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  if (x == 0.0f) return sign;
  if (exponent < -13)
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(std::fabs(x), 24)));
  const int rounded = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + rounded);
}

// A number of float16 that may be infinity or NaN, which `number` does not know.
inline double half_of(const uint8_t* at, int64_t i) {
  uint16_t bits;
  memcpy(&bits, at + 2 * i, sizeof bits);
  if ((bits & 0x7c00) != 0x7c00) return number(FASTDECODE_FLOAT16, at, i);
  return (bits & 0x3ff) != 0 ? NAN : (bits >> 15) != 0 ? -INFINITY : INFINITY;
}

inline void put_half(Random& random, bool wild, uint8_t* at) {
  const uint16_t bits = to_float16(random_scale(random, wild));
  memcpy(at, &bits, sizeof bits);
}

inline Weights random_weights(int32_t type, int32_t group, bool offsets, int64_t features,
                              int64_t k, bool wild, Random& random) {
  Weights w;
  w.how = {type, group, nullptr, nullptr, 0};
  w.features = features;
  w.k = k;
  if (!is_small(type)) {
    w.data = stored(type, features * k, random);
    return w;
  }
  constexpr int64_t kBytes[] = {1, 16, 34, 18, 32};  // of a block
  if (in_panels(type)) w.how.first = static_cast<int64_t>(random.below(16));
  const int64_t panels = features > 0 ? (w.how.first + features + 15) / 16 : 0;
  const int64_t kept = in_panels(type) ? 16 * panels : features;
  w.data = Exact<uint8_t>(kept * (k / block_of(type)) * kBytes[type - FASTDECODE_WEIGHTS_INT8]);
  const bool extreme = random.below(4) == 0;  // the two farthest values only
  for (int64_t i = 0; i < w.data.size(); ++i) {
    const uint64_t word = random.next();
    w.data[i] = extreme ? static_cast<uint8_t>((word & 1) != 0 ? 0x80 : 0x7f)
                        : static_cast<uint8_t>(word >> 13);
  }
  const int64_t factors = kept * w.groups();
  if (type == FASTDECODE_WEIGHTS_INT8 || type == FASTDECODE_WEIGHTS_INT8X16) {
    w.scale = Exact<uint8_t>(4 * factors);
    for (int64_t i = 0; i < factors; ++i) {
      const float scale = random_scale(random, wild);
      memcpy(&w.scale[4 * i], &scale, sizeof scale);
    }
  } else if (type == FASTDECODE_WEIGHTS_INT4) {
    w.scale = Exact<uint8_t>(2 * factors);
    for (int64_t i = 0; i < factors; ++i) put_half(random, wild, &w.scale[2 * i]);
    if (offsets) w.offset = Exact<uint8_t>(4 * factors);
    for (int64_t i = 0; offsets && i < factors; ++i) {
      const float offset = random_scale(random, wild);
      memcpy(&w.offset[4 * i], &offset, sizeof offset);
    }
  } else {
    const int64_t size = kBytes[type - FASTDECODE_WEIGHTS_INT8];
    for (int64_t at = 0; at < w.data.size(); at += size) put_half(random, wild, &w.data[at]);
  }
  return w;
}

// `how` with the addresses of the arrays, which a move of the struct leaves where they are.
inline fastdecode_weights how_of(Weights& w) {
  fastdecode_weights how = w.how;
  if (w.scale.size() > 0) how.scale = w.scale.get();
  if (w.offset.size() > 0) how.offset = w.offset.get();
  return how;
}

// Weight i of a feature is scaled + offset.
struct Value {
  double scaled, offset;
};

inline Value value_of(Weights& w, int64_t f, int64_t i) {
  const uint8_t* row = w.data.get() + f * w.row_bytes();
  const auto half = [](uint8_t byte, int64_t place) {
    return static_cast<double>(place < 16 ? byte & 15 : byte >> 4) - 8.0;
  };
  const int64_t block = i / 32, place = i % 32, panel = w.panel_of(f), lane = w.lane_of(f);
  switch (w.how.type) {
    case FASTDECODE_WEIGHTS_INT8:
      return {static_cast<int8_t>(row[i]) * number(FASTDECODE_FLOAT32, w.scale.get(), f), 0.0};
    case FASTDECODE_WEIGHTS_INT8X16: {
      const int64_t at = (panel * (w.k / 4) + i / 4) * 64 + 4 * lane + i % 4;
      const double scale = number(FASTDECODE_FLOAT32, w.scale.get(), 16 * panel + lane);
      return {static_cast<int8_t>(w.data[at]) * scale, 0.0};
    }
    case FASTDECODE_WEIGHTS_INT4: {
      const int64_t at = (panel * (w.k / 8) + i / 8) * 64 + 4 * lane + i % 4;
      const int64_t g = (panel * w.groups() + i / w.how.group) * 16 + lane;
      const double offset =
          w.offset.size() > 0 ? number(FASTDECODE_FLOAT32, w.offset.get(), g) : 0.0;
      return {half(w.data[at], i % 8 < 4 ? 0 : 16) * half_of(w.scale.get(), g), offset};
    }
    case FASTDECODE_WEIGHTS_Q8_0:
      return {static_cast<int8_t>(row[34 * block + 2 + place]) * half_of(row + 34 * block, 0), 0.0};
    case FASTDECODE_WEIGHTS_Q4_0:
      return {half(row[18 * block + 2 + place % 16], place) * half_of(row + 18 * block, 0), 0.0};
    default:
      return {number(w.how.type, w.data.get(), f * w.k + i), 0.0};
  }
}

// A row of x as small weights see it: NaN in a block with infinity or NaN.
inline std::vector<double> rounded_to_int8(const float* x, int64_t k) {
  std::vector<double> out(static_cast<size_t>(k));
  constexpr int64_t kBlock = 256;
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(k, begin + kBlock);
    float most = 0.0f;
    bool finite = true;
    for (int64_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      most = std::max(most, std::fabs(x[i]));
    }
    for (int64_t i = begin; i < end; ++i) {
      double value = NAN;
      if (finite && most < 0x1p-100f) value = 0.0;
      if (finite && most >= 0x1p-100f) {
        const float times = x[i] * (127.0f / most);
        value = std::nearbyint(times) * static_cast<double>(most / 127.0f);
      }
      out[static_cast<size_t>(i)] = value;
    }
  }
  return out;
}

}  // namespace fuzz
