// A group as the kernels read it from device memory: parameters, set, streams; steps 1, 3 and 4 of
// the contract for one id. What lies in device memory cannot be checked before a launch, so that
// all of it is looked at here, and nothing is read by a number that is out of range.
#pragma once

#include "core/dtypes.h"
#include "core/numerics.h"
#include "cuda/block.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

constexpr float kInf = __builtin_inff();

struct Group {
  int64_t number;
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  uint64_t seed, step;
  const uint32_t* seen;  // null: not wanted
  const float* noise;
  bool bad;  // a parameter lies outside its domain; NaN is in none

  FASTDECODE_DEVICE bool greedy() const { return temperature == 0.0f; }
};

template <typename T>
FASTDECODE_DEVICE T value_of(const T* per_group, T value, int64_t group) {
  return per_group != nullptr ? per_group[group] : value;
}

FASTDECODE_DEVICE inline Group group_of(const fastdecode_sample_args& a, int64_t number,
                                        int64_t step) {
  Group g;
  g.number = number;
  g.temperature = value_of(a.temperature, a.temperature_value, number);
  g.top_k = value_of(a.top_k, a.top_k_value, number);
  g.top_p = value_of(a.top_p, a.top_p_value, number);
  g.min_p = value_of(a.min_p, a.min_p_value, number);
  g.penalty = value_of(a.penalty, a.penalty_value, number);
  g.seed = static_cast<uint64_t>(value_of(a.seed, a.seed_value, number));
  g.step = static_cast<uint64_t>(step);
  const int64_t words = (a.vocab + 31) / 32;
  g.seen = a.seen != nullptr ? reinterpret_cast<const uint32_t*>(a.seen) + number * words : nullptr;
  g.noise = a.noise != nullptr ? a.noise + number * a.noise_stride : nullptr;
  g.bad = !(g.temperature >= 0.0f && g.temperature < kInf && g.top_p >= 0.0f && g.top_p <= 1.0f &&
            g.min_p >= 0.0f && g.min_p <= 1.0f && g.penalty > 0.0f && g.penalty < kInf);
  return g;
}

// Steps 3 and 4; never -0, which would tie with +0.
FASTDECODE_DEVICE inline float scaled(const Group& g, float z, int32_t id) {
  if (g.seen != nullptr && ((g.seen[id >> 5] >> (id & 31)) & 1u) != 0) {
    z = z < 0.0f ? z * g.penalty : z / g.penalty;
  }
  return (g.greedy() ? z : z / g.temperature) + 0.0f;
}

// Ranges first to last of those listed, or the whole vocabulary.
struct Set {
  const int32_t* ranges;  // null: the vocabulary
  int32_t first, last, vocab;
  bool bad;

  FASTDECODE_DEVICE int32_t low(int32_t r) const {
    return ranges != nullptr ? ranges[2 * static_cast<int64_t>(r)] : 0;
  }
  FASTDECODE_DEVICE int32_t high(int32_t r) const {
    return ranges != nullptr ? ranges[2 * static_cast<int64_t>(r) + 1] : vocab;
  }
  // Whether range r does not ascend from the one before it, or leaves the vocabulary.
  FASTDECODE_DEVICE bool wrong(int32_t r) const {
    const int32_t before = r > first ? high(r - 1) : 0;
    return low(r) < before || high(r) < low(r) || high(r) > vocab;
  }
};

FASTDECODE_DEVICE inline Set set_of(const fastdecode_sample_args& a, int32_t number) {
  const int32_t vocab = static_cast<int32_t>(a.vocab);
  if (number < 0 || number >= (a.sets > 0 ? a.sets : 1)) return {nullptr, 0, 0, vocab, true};
  if (a.sets == 0) return {nullptr, 0, 1, vocab, false};
  const int32_t first = a.set_offsets[number], last = a.set_offsets[number + 1];
  const bool bad = first < 0 || first > last || last > a.set_offsets[a.sets] ||
                   (a.ranges == nullptr && first < last);
  return {a.ranges, bad ? 0 : first, bad ? 0 : last, vocab, bad};
}

struct Mixed {
  float z;
  bool possible;  // no stream has -inf there
  bool wrong;     // a stream has NaN or +inf there
};

// An id's logits in the first two streams.
template <typename T>
struct Read {
  T first, second;
};

// The streams of a group that are read; the first two, mostly all there are, are at hand.
template <typename T>
class Streams {
 public:
  FASTDECODE_DEVICE Streams(const fastdecode_sample_args& a, int64_t group) : a_(a), group_(group) {
    for (int64_t k = 0; k < a.streams_per_group; ++k) {
      const int64_t row = row_of(k);
      const float weight = weight_of(k);
      if (row < -1 || row >= a.rows || !(weight > -kInf && weight < kInf)) {
        bad_ = true;
        return;
      }
      if (row < 0 || weight == 0.0f) continue;
      if (count_ == 0) first_ = {rows() + row * a.row_stride, weight};
      if (count_ == 1) second_ = {rows() + row * a.row_stride, weight};
      if (count_ == 1) further_ = k + 1;
      ++count_;
    }
  }

  // A row that does not exist or a weight that is not finite, or nothing to read at all.
  FASTDECODE_DEVICE bool bad() const { return bad_ || count_ == 0; }

  // Apart from mix, so that the reads of several ids can be under way together.
  FASTDECODE_DEVICE Read<T> read(int32_t id) const {
    return {first_.row[id], count_ > 1 ? second_.row[id] : T{}};
  }

  FASTDECODE_DEVICE Mixed mix(int32_t id, const Read<T>& read) const {
    float l = float_of(read.first);
    Mixed m = {first_.weight * l, l != -kInf, !(l < kInf)};
    if (count_ == 1) return m;
    l = float_of(read.second);
    add(second_.weight, l, m);
    if (count_ == 2) return m;
    for (int64_t k = further_; k < a_.streams_per_group; ++k) {
      const int64_t row = row_of(k);
      const float weight = weight_of(k);
      if (row >= 0 && weight != 0.0f) add(weight, float_of(rows()[row * a_.row_stride + id]), m);
    }
    return m;
  }

  // The first stream alone, for contrast; -inf for what is not finite.
  FASTDECODE_DEVICE static float expert(const Read<T>& read) {
    const float l = float_of(read.first) + 0.0f;
    return l > -kInf && l < kInf ? l : -kInf;
  }

 private:
  struct Stream {
    const T* row;
    float weight;
  };

  FASTDECODE_DEVICE static void add(float weight, float l, Mixed& m) {
    m.z = m.z + weight * l;
    m.possible = m.possible && l != -kInf;
    m.wrong = m.wrong || !(l < kInf);
  }
  FASTDECODE_DEVICE const T* rows() const { return static_cast<const T*>(a_.logits); }
  FASTDECODE_DEVICE int64_t row_of(int64_t k) const {
    return a_.streams != nullptr ? a_.streams[group_ * a_.streams_per_group + k] : group_;
  }
  FASTDECODE_DEVICE float weight_of(int64_t k) const {
    return a_.weights != nullptr ? a_.weights[group_ * a_.streams_per_group + k] : 1.0f;
  }

  const fastdecode_sample_args& a_;
  int64_t group_;
  Stream first_ = {nullptr, 0.0f}, second_ = {nullptr, 0.0f};
  int64_t count_ = 0, further_ = 0;
  bool bad_ = false;
};

// Step 2: whether the expert's probability of an id is at least alpha times its k-th largest.
struct Contrast {
  bool wanted;
  float top, least;

  FASTDECODE_DEVICE bool likely(float expert) const {
    return expert > -kInf && exp_f32(expert - top) >= least;
  }
};

FASTDECODE_DEVICE inline Contrast contrast_from(float alpha, float top, float kth) {
  return {true, top, alpha * exp_f32(kth - top)};
}

// An id's z from here on, -inf if it is not kept, and whether the group has no answer because of
// it.
struct Valued {
  float z;
  bool wrong;
};

template <typename T>
FASTDECODE_DEVICE Valued value_of_id(const Streams<T>& streams, const Group& g, const Contrast& c,
                                     int32_t id, const Read<T>& read) {
  const Mixed m = streams.mix(id, read);
  const bool keep = m.possible && (!c.wanted || c.likely(streams.expert(read)));
  const float z = scaled(g, m.z, id);
  return {keep && z < kInf ? z : -kInf, m.wrong || (keep && !(z < kInf))};
}

}  // namespace
}  // namespace fastdecode
