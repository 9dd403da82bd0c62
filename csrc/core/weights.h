// The ways in which the C interface stores a matrix of weights (features, k).
#pragma once

#include <cstring>

#include "core/dtypes.h"

namespace fastdecode {
namespace {

struct WeightType {
  const char* name;
  int64_t block;  // values that are stored together: k is a multiple of it
  int64_t bytes;  // of a block
  bool small;     // 8 bits or less: x is rounded to int8 for it
};

// By fastdecode_weight_type.
constexpr WeightType kWeightTypes[] = {{"float32", 1, 4, false}, {"bfloat16", 1, 2, false},
                                       {"float16", 1, 2, false}, {"int8", 1, 1, true},
                                       {"int4", 32, 16, true},   {"q8_0", 32, 34, true},
                                       {"q4_0", 32, 18, true},   {"int8x16", 32, 32, true}};
constexpr int kWeightTypeCount = sizeof(kWeightTypes) / sizeof(kWeightTypes[0]);

// Bytes of the k values of a feature, where k is a multiple of the type's block.
constexpr int64_t bytes_of_feature(int type, int64_t k) {
  return k / kWeightTypes[type].block * kWeightTypes[type].bytes;
}

// Features that lie side by side in a panel.
constexpr int64_t kPanelFeatures = 16;

constexpr bool in_panels(int type) {
  return type == FASTDECODE_WEIGHTS_INT4 || type == FASTDECODE_WEIGHTS_INT8X16;
}

// Features that are stored: in panels also those before the first and after the last.
constexpr int64_t stored_features(const fastdecode_weights& how, int64_t features) {
  if (!in_panels(how.type) || features == 0) return features;
  return (how.first + features + kPanelFeatures - 1) / kPanelFeatures * kPanelFeatures;
}

// Factors of a feature.
constexpr int64_t groups_of(const fastdecode_weights& how, int64_t k) {
  return how.type == FASTDECODE_WEIGHTS_INT4 ? (k + how.group - 1) / how.group : 1;
}

inline float float16_at(const void* from, int64_t index) {
  Float16 value;
  std::memcpy(&value, static_cast<const char*>(from) + 2 * index, sizeof value);
  return float_of(value);
}

// The k weights of a feature in float32: out[i] is weight i, for a type that is small.
inline void small_weights(const void* weight, const fastdecode_weights& how, int64_t feature,
                          int64_t k, float* out) {
  const char* all = static_cast<const char*>(weight);
  const char* from = all + feature * bytes_of_feature(how.type, k);
  const int64_t groups = groups_of(how, k);
  const int64_t panel = (how.first + feature) / kPanelFeatures,
                lane = (how.first + feature) % kPanelFeatures;
  const float* scale = static_cast<const float*>(how.scale);
  const auto half = [](char stored, bool high) {
    const uint8_t byte = static_cast<uint8_t>(stored);
    return static_cast<float>((high ? byte >> 4 : byte & 15) - 8);
  };
  for (int64_t i = 0; i < k; ++i) {
    const int64_t block = i / 32, place = i % 32;
    if (how.type == FASTDECODE_WEIGHTS_INT8) {
      out[i] = static_cast<float>(static_cast<int8_t>(from[i])) * scale[feature];
    } else if (how.type == FASTDECODE_WEIGHTS_INT8X16) {
      const int64_t at = (panel * (k / 4) + i / 4) * 64 + lane * 4 + i % 4;
      out[i] =
          static_cast<float>(static_cast<int8_t>(all[at])) * scale[panel * kPanelFeatures + lane];
    } else if (how.type == FASTDECODE_WEIGHTS_INT4) {
      const int64_t at = (panel * (k / 8) + i / 8) * 64 + lane * 4 + i % 4;
      const int64_t g = (panel * groups + i / how.group) * kPanelFeatures + lane;
      out[i] = half(all[at], i % 8 >= 4) * float16_at(how.scale, g);
      if (how.offset != nullptr) out[i] += static_cast<const float*>(how.offset)[g];
    } else if (how.type == FASTDECODE_WEIGHTS_Q8_0) {
      const char* at = from + 34 * block;
      out[i] = static_cast<float>(static_cast<int8_t>(at[2 + place])) * float16_at(at, 0);
    } else {
      const char* at = from + 18 * block;
      out[i] = half(at[2 + place % 16], place >= 16) * float16_at(at, 0);
    }
  }
}

}  // namespace
}  // namespace fastdecode
