// The sampling contract for one group, with baseline instructions and nothing from the standard
// library. The steps are those of fastdecode/ops/reference.py, with searches in place of sorts:
//
//   gather   mixes, penalises and divides each allowed id once, and keeps the possible ones
//   filter   top-k, top-p, min-p, each thinning the list of survivors
//   draw     Gumbel noise for the survivors
//
// Built with -ffp-contract=off: products and sums are rounded separately, as in the reference.

#include <stddef.h>
#include <stdint.h>

#include "core/numerics.h"
#include "core/philox.h"
#include "cpu/sample.h"

namespace fastdecode {
namespace {

constexpr float kInf = __builtin_inff();
constexpr int kBlock = 256;

// --- reading logits

inline float load(const float* row, int64_t i) {
  return row[i];
}

struct BFloat16 {
  uint16_t bits;
};

inline float load(const BFloat16* row, int64_t i) {
  return bits_float(static_cast<uint32_t>(row[i].bits) << 16);
}

struct Float16 {
  uint16_t bits;
};

inline float load(const Float16* row, int64_t i) {
  const uint32_t h = row[i].bits;
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t rebias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const float normal = bits_float((magnitude << 13) + rebias);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return bits_float(sign | float_bits(magnitude < 0x0400u ? subnormal : normal));
}

// --- gathering

// Parameters of one group.
struct Group {
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  uint64_t seed, step;
  const uint32_t* seen;  // null: none
  const float* noise;    // null: drawn
};

// Survivors of the filters so far; the arrays are the scratch's.
struct Survivors {
  int32_t* id;
  float* z;
  float* p;
  int32_t* at;  // positions, for searches
  int64_t count;
  float top;     // largest z
  bool invalid;  // a NaN or +inf was read or computed
};

// One stream of a block: adds w * l to z (or sets it), marks ids that are -inf as dead.
template <typename T>
inline bool mix_block(const T* row, int64_t lo, int n, float w, bool first, float* z,
                      uint32_t* dead) {
  uint32_t invalid = 0;
  if (first) {
    for (int i = 0; i < n; ++i) {
      const float l = load(row, lo + i);
      invalid |= l < kInf ? 0u : 1u;
      dead[i] = l == -kInf ? 1u : 0u;
      z[i] = w * l;
    }
  } else {
    for (int i = 0; i < n; ++i) {
      const float l = load(row, lo + i);
      invalid |= l < kInf ? 0u : 1u;
      dead[i] |= l == -kInf ? 1u : 0u;
      z[i] = z[i] + w * l;
    }
  }
  return invalid != 0;
}

inline void penalise_block(const uint32_t* seen, int64_t lo, int n, float penalty, float* z) {
  for (int i = 0; i < n; ++i) {
    const int64_t id = lo + i;
    if ((seen[id >> 5] >> (id & 31)) & 1u) z[i] = z[i] < 0.0f ? z[i] * penalty : z[i] / penalty;
  }
}

// Makes dead ids -inf, and -0 into +0, since they are ties; whether a NaN or +inf is left.
inline bool finish_block(const uint32_t* dead, int n, float* z) {
  uint32_t invalid = 0;
  for (int i = 0; i < n; ++i) {
    z[i] = dead[i] ? -kInf : z[i] + 0.0f;
    invalid |= z[i] < kInf ? 0u : 1u;
  }
  return invalid != 0;
}

// In lanes, for vector code; a NaN is passed over.
inline float largest(const float* z, int n) {
  constexpr int kLanes = 8;
  float lane[kLanes];
  for (int j = 0; j < kLanes; ++j) lane[j] = -kInf;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] = z[i + j] > lane[j] ? z[i + j] : lane[j];
  }
  for (; i < n; ++i) lane[0] = z[i] > lane[0] ? z[i] : lane[0];
  for (int j = 1; j < kLanes; ++j) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
  return lane[0];
}

// Steps 1 to 4 for the ids [lo, hi): appends those that are possible.
template <typename T>
void gather_range(const fastdecode_sample_args& args, int64_t group, const Group& g, int64_t lo,
                  int64_t hi, Survivors& out) {
  const T* logits = static_cast<const T*>(args.logits);
  const int64_t width = args.streams_per_group;
  float z[kBlock];
  uint32_t dead[kBlock];
  for (int64_t begin = lo; begin < hi; begin += kBlock) {
    const int n = static_cast<int>(hi - begin < kBlock ? hi - begin : kBlock);
    bool first = true;
    for (int64_t k = 0; k < width; ++k) {
      const int64_t row = args.streams != nullptr ? args.streams[group * width + k] : group;
      const float w = args.weights != nullptr ? args.weights[group * width + k] : 1.0f;
      if (row < 0 || w == 0.0f) continue;
      if (mix_block(logits + row * args.row_stride, begin, n, w, first, z, dead)) {
        out.invalid = true;
      }
      first = false;
    }
    if (g.seen != nullptr) penalise_block(g.seen, begin, n, g.penalty, z);
    if (g.temperature != 0.0f && g.temperature != 1.0f) {
      for (int i = 0; i < n; ++i) z[i] = z[i] / g.temperature;
    }
    if (finish_block(dead, n, z)) out.invalid = true;
    const float top = largest(z, n);
    if (top > out.top) out.top = top;
    int64_t count = out.count;
    for (int i = 0; i < n; ++i) {
      out.id[count] = static_cast<int32_t>(begin + i);
      out.z[count] = z[i];
      count += z[i] > -kInf ? 1 : 0;
    }
    out.count = count;
  }
}

// Whether a group reads any stream.
bool reads_a_stream(const fastdecode_sample_args& args, int64_t group) {
  const int64_t width = args.streams_per_group;
  for (int64_t k = 0; k < width; ++k) {
    const bool present = args.streams == nullptr || args.streams[group * width + k] >= 0;
    if (present && (args.weights == nullptr || args.weights[group * width + k] != 0.0f))
      return true;
  }
  return false;
}

// Gathers the group's whole set; returns the number of ids in it.
template <typename T>
int64_t gather(const fastdecode_sample_args& args, int64_t group, const Group& g, Survivors& out) {
  const bool reads = reads_a_stream(args, group);
  if (!reads) out.invalid = true;
  if (args.sets == 0) {
    if (reads) gather_range<T>(args, group, g, 0, args.vocab, out);
    return args.vocab;
  }
  const int64_t set = args.set_index != nullptr ? args.set_index[group] : 0;
  int64_t allowed = 0;
  for (int64_t r = args.set_offsets[set]; r < args.set_offsets[set + 1]; ++r) {
    const int64_t lo = args.ranges[2 * r], hi = args.ranges[2 * r + 1];
    if (reads) gather_range<T>(args, group, g, lo, hi, out);
    allowed += hi - lo;
  }
  return allowed;
}

// --- filtering

struct CountWeight {
  uint64_t operator()(int64_t) const { return 1; }
};

struct MassWeight {
  const float* p;
  uint64_t operator()(int64_t i) const { return static_cast<uint64_t>(mass_of(p[i])); }
};

// The largest order key c such that the survivors with key >= c weigh at least `limit` together,
// where 1 <= limit <= the weight of all. Finds c digit by digit, from histograms of the keys that
// agree with the digits found; sums are of integers, so their order does not matter.
template <typename Weight>
uint32_t weighted_cut(const Survivors& s, uint64_t limit, Weight weight) {
  constexpr int kMaxBits = 11;
  // Small lists: clearing and scanning the bins costs more than another pass.
  const int bits = s.count < 4096 ? 8 : kMaxBits;
  uint64_t bins[1 << kMaxBits];
  uint32_t cut = 0;
  int64_t candidates = s.count;  // positions at[0 .. candidates), once the first digit is found
  for (int shift = 32; shift > 0;) {
    const int next = shift > bits ? shift - bits : 0;
    const uint32_t last_digit = (1u << (shift - next)) - 1u;
    for (uint32_t d = 0; d <= last_digit; ++d) bins[d] = 0;
    for (int64_t c = 0; c < candidates; ++c) {
      const int64_t i = shift == 32 ? c : s.at[c];
      bins[(order_key(s.z[i]) >> next) & last_digit] += weight(i);
    }
    uint32_t digit = last_digit;
    while (digit > 0 && bins[digit] < limit) limit -= bins[digit--];
    cut |= digit << next;
    int64_t agreeing = 0;
    for (int64_t c = 0; c < candidates; ++c) {
      const int64_t i = shift == 32 ? c : s.at[c];
      if (((order_key(s.z[i]) >> next) & last_digit) == digit) {
        s.at[agreeing++] = static_cast<int32_t>(i);
      }
    }
    candidates = agreeing;
    shift = next;
  }
  return cut;
}

// Moves survivor i to place `count`.
inline void keep(int64_t i, int64_t count, Survivors& s) {
  s.id[count] = s.id[i];
  s.z[count] = s.z[i];
  s.p[count] = s.p[i];
}

// Drops the survivors whose z lies below the key.
void keep_from(uint32_t cut, Survivors& s) {
  int64_t count = 0;
  for (int64_t i = 0; i < s.count; ++i) {
    if (order_key(s.z[i]) >= cut) keep(i, count++, s);
  }
  s.count = count;
}

// Drops the survivors of probability below min_p times the largest, which is exp(0) = 1.
void keep_likely(float min_p, Survivors& s) {
  int64_t count = 0;
  for (int64_t i = 0; i < s.count; ++i) {
    if (s.p[i] >= min_p) keep(i, count++, s);
  }
  s.count = count;
}

uint64_t total_mass(const Survivors& s) {
  int64_t total = 0;
  for (int64_t i = 0; i < s.count; ++i) total += mass_of(s.p[i]);
  return static_cast<uint64_t>(total);
}

// ceil(top_p * total), the product rounded once in float64, and at least 1: an integer mass is
// below top_p * total exactly when it is below this, and the largest z always has none above it.
uint64_t top_p_limit(float top_p, uint64_t total) {
  const double product = static_cast<double>(top_p) * static_cast<double>(total);
  const uint64_t floor = static_cast<uint64_t>(product);
  const uint64_t ceiling = floor + (static_cast<double>(floor) < product ? 1 : 0);
  return ceiling > 1 ? ceiling : 1;
}

// Steps 5 to 7; returns the mass of those that stay.
uint64_t filter(const Group& g, Survivors& s) {
  if (g.top_k > 0 && g.top_k < s.count) {
    keep_from(weighted_cut(s, static_cast<uint64_t>(g.top_k), CountWeight()), s);
  }
  for (int64_t i = 0; i < s.count; ++i) s.p[i] = exp_f32(s.z[i] - s.top);
  if (g.top_p < 1.0f) {
    const uint64_t limit = top_p_limit(g.top_p, total_mass(s));
    keep_from(weighted_cut(s, limit, MassWeight{s.p}), s);
  }
  if (g.min_p > 0.0f) keep_likely(g.min_p, s);
  return total_mass(s);
}

// --- drawing

// Noise of n <= kBlock ids; as two loops both become vector code.
void noise_block(const Group& g, const int32_t* id, int n, float* noise) {
  uint32_t word0[kBlock], word1[kBlock];
  for (int i = 0; i < n; ++i) {
    const PhiloxBlock block = philox_noise(g.seed, g.step, static_cast<uint32_t>(id[i]));
    word0[i] = block.word[0];
    word1[i] = block.word[1];
  }
  for (int i = 0; i < n; ++i) noise[i] = gumbel_of(word0[i], word1[i]);
}

// Position of the survivor with the largest z + noise, the first on a tie. A NaN never wins, nor
// does -inf unless every survivor has it.
int64_t draw(const Group& g, const Survivors& s) {
  int64_t best = 0;
  float best_value = -kInf;
  float noise[kBlock];
  for (int64_t begin = 0; begin < s.count; begin += kBlock) {
    const int n = static_cast<int>(s.count - begin < kBlock ? s.count - begin : kBlock);
    const int32_t* id = s.id + begin;
    if (g.noise != nullptr) {
      for (int i = 0; i < n; ++i) noise[i] = g.noise[id[i]];
    } else {
      noise_block(g, id, n, noise);
    }
    for (int i = 0; i < n; ++i) {
      const float value = s.z[begin + i] + noise[i];
      if (value > best_value) {
        best_value = value;
        best = begin + i;
      }
    }
  }
  return best;
}

int64_t greedy(const Survivors& s) {
  int64_t best = 0;
  while (s.z[best] != s.top) ++best;
  return best;
}

template <typename T>
T value_of(const T* per_group, T value, int64_t group) {
  return per_group != nullptr ? per_group[group] : value;
}

Group parameters(const fastdecode_sample_args& args, int64_t group) {
  Group g;
  g.temperature = value_of(args.temperature, args.temperature_value, group);
  g.top_k = value_of(args.top_k, args.top_k_value, group);
  g.top_p = value_of(args.top_p, args.top_p_value, group);
  g.min_p = value_of(args.min_p, args.min_p_value, group);
  g.penalty = value_of(args.penalty, args.penalty_value, group);
  g.seed = static_cast<uint64_t>(value_of(args.seed, args.seed_value, group));
  g.step = static_cast<uint64_t>(value_of(args.step, args.step_value, group));
  const bool penalised = args.seen != nullptr && g.penalty != 1.0f;
  const int64_t words = (args.vocab + 31) / 32;
  g.seen = penalised ? reinterpret_cast<const uint32_t*>(args.seen) + group * words : nullptr;
  g.noise = args.noise != nullptr ? args.noise + group * args.noise_stride : nullptr;
  return g;
}

}  // namespace

void sample_group_portable(const fastdecode_sample_args& args, int64_t group,
                           const SampleScratch& scratch) {
  const Group g = parameters(args, group);
  Survivors s = {scratch.id, scratch.z, scratch.p, scratch.at, 0, -kInf, false};
  const int64_t allowed = args.dtype == FASTDECODE_FLOAT32    ? gather<float>(args, group, g, s)
                          : args.dtype == FASTDECODE_BFLOAT16 ? gather<BFloat16>(args, group, g, s)
                                                              : gather<Float16>(args, group, g, s);

  args.token[group] = -1;
  args.logprob[group] = -kInf;
  args.kept[group] = 0;
  args.status[group] = allowed == 0                ? FASTDECODE_STATUS_EMPTY_SET
                       : s.invalid || s.count == 0 ? FASTDECODE_STATUS_INVALID_LOGITS
                                                   : FASTDECODE_STATUS_OK;
  if (args.status[group] != FASTDECODE_STATUS_OK) return;

  if (g.temperature == 0.0f) {
    args.token[group] = s.id[greedy(s)];
    args.logprob[group] = 0.0f;
    args.kept[group] = 1;
    return;
  }
  const uint64_t mass = filter(g, s);
  const int64_t drawn = draw(g, s);
  const float log_total = log_f32(static_cast<float>(static_cast<int64_t>(mass)) * 0x1p-40f);
  args.token[group] = s.id[drawn];
  args.logprob[group] = (s.z[drawn] - s.top) - log_total;
  args.kept[group] = static_cast<int32_t>(s.count);
}

}  // namespace fastdecode
