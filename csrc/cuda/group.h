// A group as the kernels read it from device memory: parameters, set and streams; and steps 1 to 4
// of the contract for one token. Device memory cannot be checked before a launch, so it is checked
// here, and no number that is out of range is used as an index.
#pragma once

#include "core/dtypes.h"
#include "core/numerics.h"
#include "core/sample_group.h"
#include "cuda/block.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

struct Group : Parameters {
  int64_t number;
  bool bad;  // a parameter is out of range, or NaN

  FASTDECODE_DEVICE bool greedy() const { return temperature == 0.0f; }
};

FASTDECODE_DEVICE inline Group group_of(const fastdecode_sample_args& a, int64_t number,
                                        int64_t step) {
  Group g = {parameters(a, number, step), number, false};
  g.bad = !(g.temperature >= 0.0f && g.temperature < kInf && g.top_p >= 0.0f && g.top_p <= 1.0f &&
            g.min_p >= 0.0f && g.min_p <= 1.0f && g.penalty > 0.0f && g.penalty < kInf);
  return g;
}

// Steps 3 and 4. Never -0: its order key differs from that of +0.
FASTDECODE_DEVICE inline float scaled(const Group& g, float z, int32_t id) {
  if (g.seen != nullptr && is_seen(g.seen, id)) z = penalised(z, g.penalty);
  return (g.greedy() ? z : z / g.temperature) + 0.0f;
}

// A set: the ranges [first, last) of those listed, or the whole vocabulary as one range.
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
  // Whether range r overlaps or precedes the one before it, or leaves the vocabulary.
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

// A token's logits in the first two streams.
template <typename T>
struct Read {
  T first, second;
};

// The streams of a group that are read: present, and of a weight other than 0. The first two are
// kept in registers; there are rarely more.
template <typename T>
class Streams {
 public:
  FASTDECODE_DEVICE Streams(const fastdecode_sample_args& a, int64_t group) : a_(a), group_(group) {
    for (int64_t k = 0; k < a.streams_per_group; ++k) {
      const int64_t row = this->row(k);
      const float weight = weight_of(a, group, k);
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

  // Whether a row does not exist, a weight is not finite, or there is no stream to read.
  FASTDECODE_DEVICE bool bad() const { return bad_ || count_ == 0; }

  // Separate from mix, so that a thread can start the reads of several tokens before it uses one.
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
      const int64_t row = this->row(k);
      const float weight = weight_of(a_, group_, k);
      if (row >= 0 && weight != 0.0f) add(weight, float_of(rows()[row * a_.row_stride + id]), m);
    }
    return m;
  }

  // The logit in the first stream, for contrast; -inf if it is not finite.
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
  FASTDECODE_DEVICE int64_t row(int64_t k) const {
    return row_of(a_.streams, a_.streams_per_group, group_, k);
  }

  const fastdecode_sample_args& a_;
  int64_t group_;
  Stream first_ = {nullptr, 0.0f}, second_ = {nullptr, 0.0f};
  int64_t count_ = 0, further_ = 0;
  bool bad_ = false;
};

struct Valued {
  float z;     // -inf if the token is not kept
  bool wrong;  // NaN or +inf was read or computed, so that the group gets no token
};

template <typename T>
FASTDECODE_DEVICE Valued value_of_id(const Streams<T>& streams, const Group& g, const Contrast& c,
                                     int32_t id, const Read<T>& read) {
  const Mixed m = streams.mix(id, read);
  const bool keep = m.possible && (!c.wanted || c.keeps(streams.expert(read)));
  const float z = scaled(g, m.z, id);
  return {keep && z < kInf ? z : -kInf, m.wrong || (keep && !(z < kInf))};
}

}  // namespace
}  // namespace fastdecode
