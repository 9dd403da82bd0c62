// The checks of the arguments of a decode step and of its operations.
#pragma once

#include "core/apart.h"
#include "core/check.h"
#include "core/weights.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {

// Each: FASTDECODE_OK, or FASTDECODE_INVALID_ARGUMENT with the message set.
fastdecode_result check_decode_args(const fastdecode_decode_args& args);
fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& args);
fastdecode_result check_attend_args(const fastdecode_attend_args& args);

fastdecode_result check_activation(int64_t activation);

// How a matrix (features, k) is stored. `name`: what messages call it; `inputs`: what they call k;
// `any`: whether there are features.
fastdecode_result check_weights(const char* name, const fastdecode_weights* how, const char* inputs,
                                int64_t k, bool any);

// The arrays of a matrix (features, k) that check_weights accepts.
namespace {
inline Area weight_area(const void* weight, const fastdecode_weights& how, int64_t features,
                        int64_t k) {
  return {"weight", weight, stored_features(how, features) * bytes_of_feature(how.type, k), 1};
}
inline Area scale_area(const fastdecode_weights& how, int64_t features, int64_t k) {
  const int64_t bytes = how.type == FASTDECODE_WEIGHTS_INT4 ? 2 : 4;
  return {"how.scale", how.scale, stored_features(how, features) * groups_of(how, k), bytes};
}
inline Area offset_area(const fastdecode_weights& how, int64_t features, int64_t k) {
  return {"how.offset", how.offset, stored_features(how, features) * groups_of(how, k), 4};
}
}  // namespace

}  // namespace fastdecode
