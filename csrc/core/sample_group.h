// One group of fastdecode_sample, as every backend reads and answers it: its parameters, the rows
// and weights of its streams, the formulas for one token, and what is written.
//
// Everything is in an unnamed namespace: units built for different instruction sets must never
// share a compiled copy.
#pragma once

#include "core/numerics.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

constexpr float kInf = __builtin_inff();

// A mass is at most 2^40, and those of a whole vocabulary must add up to less than 2^63.
constexpr int64_t kMaxVocab = int64_t{1} << 22;

struct Parameters {
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  uint64_t seed, step;
  const uint32_t* seen;  // bits of the penalised tokens; null: none is penalised
  const float* noise;    // (vocab,) noise to use; null: it is computed
};

template <typename T>
FASTDECODE_HD T value_of(const T* per_group, T value, int64_t group) {
  return per_group != nullptr ? per_group[group] : value;
}

FASTDECODE_HD inline Parameters parameters(const fastdecode_sample_args& args, int64_t group,
                                           int64_t step) {
  Parameters p;
  p.temperature = value_of(args.temperature, args.temperature_value, group);
  p.top_k = value_of(args.top_k, args.top_k_value, group);
  p.top_p = value_of(args.top_p, args.top_p_value, group);
  p.min_p = value_of(args.min_p, args.min_p_value, group);
  p.penalty = value_of(args.penalty, args.penalty_value, group);
  p.seed = static_cast<uint64_t>(value_of(args.seed, args.seed_value, group));
  p.step = static_cast<uint64_t>(step);
  const bool penalises = args.seen != nullptr && p.penalty != 1.0f;
  const int64_t words = (args.vocab + 31) / 32;
  p.seen = penalises ? reinterpret_cast<const uint32_t*>(args.seen) + group * words : nullptr;
  p.noise = args.noise != nullptr ? args.noise + group * args.noise_stride : nullptr;
  return p;
}

// Row of stream k of a group, -1 if the stream is absent. `streams` (groups, streams_per_group), or
// null where each group has one stream, whose row is the group's number.
FASTDECODE_HD inline int64_t row_of(const int32_t* streams, int64_t streams_per_group,
                                    int64_t group, int64_t k) {
  return streams != nullptr ? streams[group * streams_per_group + k] : group;
}

FASTDECODE_HD inline float weight_of(const fastdecode_sample_args& args, int64_t group, int64_t k) {
  return args.weights != nullptr ? args.weights[group * args.streams_per_group + k] : 1.0f;
}

// Whether a token's bit is set in `seen`.
FASTDECODE_HD inline bool is_seen(const uint32_t* seen, int64_t token) {
  return ((seen[token >> 5] >> (token & 31)) & 1u) != 0;
}

// The repetition penalty of a token that was seen.
FASTDECODE_HD inline float penalised(float z, float penalty) {
  return z < 0.0f ? z * penalty : z / penalty;
}

// Contrast keeps a token whose probability in the first stream (the expert) is at least alpha times
// the k-th largest probability there.
struct Contrast {
  bool wanted;
  float top, least;  // the expert's largest logit, and the least exp(logit - top) that is kept

  FASTDECODE_HD bool keeps(float expert) const {
    return expert > -kInf && exp_f32(expert - top) >= least;
  }
};

// `top` and `kth`: the expert's largest and k-th largest logit.
FASTDECODE_HD inline Contrast contrast_from(float alpha, float top, float kth) {
  return {true, top, alpha * exp_f32(kth - top)};
}

FASTDECODE_HD inline void write(const fastdecode_sample_args& args, int64_t group, int64_t token,
                                float logprob, int32_t kept, int32_t status) {
  args.token[group] = token;
  args.logprob[group] = logprob;
  args.kept[group] = kept;
  args.status[group] = status;
}

// Of a group that gets no token.
FASTDECODE_HD inline void write_none(const fastdecode_sample_args& args, int64_t group,
                                     int32_t status) {
  write(args, group, -1, -kInf, 0, status);
}

// Of a group whose token is certain.
FASTDECODE_HD inline void write_certain(const fastdecode_sample_args& args, int64_t group,
                                        int64_t token) {
  write(args, group, token, 0.0f, 1, FASTDECODE_STATUS_OK);
}

}  // namespace
}  // namespace fastdecode
