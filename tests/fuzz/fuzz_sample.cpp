// fastdecode_sample, with arguments valid and broken.

#include <memory>

#include "fuzz.h"

namespace fuzz {
namespace {

struct Outputs {
  Exact<int64_t> token;
  Exact<float> logprob;
  Exact<int32_t> kept, status;

  explicit Outputs(int64_t groups) : token(groups), logprob(groups), kept(groups), status(groups) {
    token.fill(0x5A5A5A5A5A5A5A5A);
    logprob.fill(NAN);
    kept.fill(0x5A5A5A5A);
    status.fill(0x5A5A5A5A);
  }
  void write_to(fastdecode_sample_args& args) {
    args.token = token.get();
    args.logprob = logprob.get();
    args.kept = kept.get();
    args.status = status.get();
  }
  bool same_bits(const Outputs& other) const {
    return token.same_bits(other.token) && logprob.same_bits(other.logprob) &&
           kept.same_bits(other.kept) && status.same_bits(other.status);
  }
};

// Owns every array that the arguments point to.
struct Case {
  fastdecode_sample_args args;
  Exact<uint8_t> logits;
  Exact<int32_t> streams, ranges, offsets, set_index, top_k, seen;
  Exact<float> weights, temperature, top_p, min_p, penalty, noise;
  Exact<int64_t> seed, step;
  bool broken = false;  // must be refused
  bool without_token = false, without_status = false;
};

int element_size(int32_t dtype) {
  return dtype == FASTDECODE_FLOAT32 ? 4 : 2;
}

// One element of the dtype nearest to x; good enough for 16 bits: bfloat16 truncates, float16 takes
// the low bits of what was drawn.
void store(uint8_t* to, int32_t dtype, float x, uint64_t drawn) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (dtype == FASTDECODE_FLOAT32) {
    memcpy(to, &bits, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == FASTDECODE_FLOAT16) {
    const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 15;
    half = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (std::isnan(x)) {
      half = static_cast<uint16_t>(half | 0x7e00);
    } else if (exponent >= 31) {
      half = static_cast<uint16_t>(half | 0x7c00);
    } else if (exponent <= 0) {
      half = static_cast<uint16_t>(half | (drawn & 0x3ff));
    } else {
      half = static_cast<uint16_t>(half | exponent << 10 | (bits >> 13 & 0x3ff));
    }
  }
  memcpy(to, &half, 2);
}

void make_logits(Bytes& bytes, Case& c) {
  fastdecode_sample_args& a = c.args;
  a.rows = bytes.in(0, 6);
  switch (bytes.in(0, 15)) {
    case 0:
      a.vocab = bytes.of<int64_t>({1, 2, 31, 511, 512, 513, 1024});
      break;
    case 1:
      a.vocab = bytes.of<int64_t>({8191, 8192, 8193, 16384, 16390, 40000});
      break;
    case 2:
      a.vocab = bytes.in(1, 5000);
      break;
    default:
      a.vocab = bytes.in(1, 200);
  }
  a.dtype = static_cast<int32_t>(bytes.in(0, 2));
  a.row_stride = a.vocab + bytes.of<int64_t>({0, 0, 1, 7, 64});
  if (bytes.one_in(16)) a.row_stride = FASTDECODE_REPEAT;
  const int size = element_size(a.dtype);
  const int64_t stride = a.row_stride == FASTDECODE_REPEAT ? 0 : a.row_stride;
  const int64_t elements = a.rows > 0 ? (a.rows - 1) * stride + a.vocab : 0;
  c.logits = Exact<uint8_t>(elements * size);
  std::vector<float> palette(static_cast<size_t>(bytes.in(1, 12)));
  for (float& x : palette) x = bytes.any_float();
  if (!bytes.one_in(5)) {  // mostly nothing invalid
    for (float& x : palette) x = std::isnan(x) || x == INFINITY ? -INFINITY : x;
  }
  if (bytes.one_in(3)) palette[0] = -INFINITY;
  const bool spread = bytes.one_in(4);
  Random random(bytes.bits(2));
  for (int64_t i = 0; i < elements; ++i) {
    const uint64_t drawn = random.next();
    float x = palette[drawn % palette.size()];
    if (spread) x += static_cast<float>(drawn >> 40) * 0x1p-22f;
    store(c.logits.get() + i * size, a.dtype, x, drawn >> 20);
  }
  a.logits = c.logits.get();
}

void make_streams(Bytes& bytes, Case& c) {
  fastdecode_sample_args& a = c.args;
  a.groups = bytes.in(0, 5);
  if (bytes.one_in(2)) {
    a.streams_per_group = bytes.in(1, 4);
    c.streams = Exact<int32_t>(a.groups * a.streams_per_group);
    for (int64_t i = 0; i < c.streams.size(); ++i) {
      c.streams[i] = static_cast<int32_t>(bytes.in(-1, a.rows - 1));
    }
    a.streams = c.streams.get();
  } else if (a.groups > a.rows) {
    a.groups = a.rows;
  }
  if (bytes.one_in(2)) {
    c.weights = Exact<float>(a.groups * a.streams_per_group);
    for (int64_t i = 0; i < c.weights.size(); ++i) {
      c.weights[i] = bytes.one_in(3) ? bytes.finite_float()
                                     : bytes.of<float>({1.0f, -1.0f, 3.0f, -2.0f, 0.0f, -0.0f});
    }
    a.weights = c.weights.get();
  }
}

void make_sets(Bytes& bytes, Case& c) {
  fastdecode_sample_args& a = c.args;
  if (bytes.one_in(2)) return;
  a.sets = bytes.in(1, 4);
  std::vector<int32_t> pairs;
  c.offsets = Exact<int32_t>(a.sets + 1);
  c.offsets[0] = 0;
  for (int64_t s = 0; s < a.sets; ++s) {
    int64_t end = 0;
    const int64_t widest = bytes.one_in(2) ? a.vocab : 9;
    for (int64_t n = bytes.in(0, 6); n > 0 && end < a.vocab; --n) {
      const int64_t lo = bytes.in(end, std::min(a.vocab, end + widest));
      const int64_t hi = bytes.in(lo, std::min(a.vocab, lo + widest));
      pairs.push_back(static_cast<int32_t>(lo));
      pairs.push_back(static_cast<int32_t>(hi));
      end = hi;
    }
    c.offsets[s + 1] = static_cast<int32_t>(pairs.size() / 2);
  }
  c.ranges = Exact<int32_t>(static_cast<int64_t>(pairs.size()));
  for (size_t i = 0; i < pairs.size(); ++i) c.ranges[static_cast<int64_t>(i)] = pairs[i];
  a.ranges = pairs.empty() && bytes.one_in(2) ? nullptr : c.ranges.get();
  a.set_offsets = c.offsets.get();
  if (bytes.one_in(2)) {
    c.set_index = Exact<int32_t>(a.groups);
    for (int64_t g = 0; g < a.groups; ++g) {
      c.set_index[g] = static_cast<int32_t>(bytes.in(0, a.sets - 1));
    }
    a.set_index = c.set_index.get();
  }
}

// A parameter for all groups, or one for each.
template <typename T, typename Draw>
void parameter(Bytes& bytes, int64_t groups, Exact<T>& each, const T*& pointer, T& value,
               Draw draw) {
  if (bytes.one_in(2)) return;
  if (bytes.one_in(2)) {
    value = draw();
    return;
  }
  each = Exact<T>(groups);
  for (int64_t g = 0; g < groups; ++g) each[g] = draw();
  pointer = each.get();
}

void make_parameters(Bytes& bytes, Case& c) {
  fastdecode_sample_args& a = c.args;
  const auto positive = [&] { return std::fmax(std::fabs(bytes.finite_float()), 1e-45f); };
  parameter(bytes, a.groups, c.temperature, a.temperature, a.temperature_value, [&] {
    return bytes.one_in(2) ? bytes.of<float>({0.0f, 0.5f, 1.0f, 2.0f}) : positive();
  });
  parameter(bytes, a.groups, c.top_k, a.top_k, a.top_k_value, [&] {
    return bytes.one_in(4) ? bytes.of<int32_t>({INT32_MIN, -1, INT32_MAX, 0})
                           : static_cast<int32_t>(bytes.in(0, a.vocab + 2));
  });
  const auto unit = [&] { return bytes.unit_float(); };
  parameter(bytes, a.groups, c.top_p, a.top_p, a.top_p_value, unit);
  parameter(bytes, a.groups, c.min_p, a.min_p, a.min_p_value, unit);
  parameter(bytes, a.groups, c.penalty, a.penalty, a.penalty_value, positive);
  const auto number = [&] { return bytes.any_int64(); };
  parameter(bytes, a.groups, c.seed, a.seed, a.seed_value, number);
  parameter(bytes, a.groups, c.step, a.step, a.step_value, number);
  if (bytes.one_in(4)) {
    a.contrast_k = bytes.one_in(4) ? INT32_MAX : static_cast<int32_t>(bytes.in(1, a.vocab + 2));
    a.contrast_alpha = bytes.unit_float();
  }
  Random random(bytes.bits(2));
  if (a.penalty != nullptr || a.penalty_value != 1.0f || bytes.one_in(3)) {
    c.seen = Exact<int32_t>(a.groups * ((a.vocab + 31) / 32));
    for (int64_t i = 0; i < c.seen.size(); ++i) c.seen[i] = static_cast<int32_t>(random.next());
    a.seen = c.seen.get();
  }
  if (bytes.one_in(5) && a.groups > 0) {
    a.noise_stride = bytes.one_in(8) ? FASTDECODE_REPEAT : a.vocab + bytes.in(0, 3);
    const int64_t stride = a.noise_stride == FASTDECODE_REPEAT ? 0 : a.noise_stride;
    c.noise = Exact<float>((a.groups - 1) * stride + a.vocab);
    const float palette[] = {bytes.any_float(), bytes.any_float(), 0.5f, -1.0f};
    for (int64_t i = 0; i < c.noise.size(); ++i) c.noise[i] = palette[random.below(4)];
    a.noise = c.noise.get();
  }
}

// Sets an element of a parameter, or its value for all groups.
template <typename T>
void set_parameter(Bytes& bytes, Exact<T>& each, T& value, T bad) {
  if (each.size() > 0) {
    each[bytes.in(0, each.size() - 1)] = bad;
  } else {
    value = bad;
  }
}

// One thing that must be refused. What the library cannot know, such as how long an array really
// is, stays true.
void break_one(Bytes& bytes, Case& c) {
  fastdecode_sample_args& a = c.args;
  const int64_t negative = bytes.one_in(2) ? -1 : INT64_MIN;
  c.broken = true;
  switch (bytes.in(0, 30)) {
    case 0:
      a.dtype = bytes.of<int32_t>({-1, 3, INT32_MAX, INT32_MIN});
      return;
    case 1:
      a.rows = negative;
      return;
    case 2:
      a.groups = negative;
      return;
    case 3:
      a.streams_per_group = bytes.one_in(2) ? 0 : negative;
      return;
    case 4:
      a.sets = negative;
      return;
    case 5:
      a.threads = bytes.of<int32_t>({-1, INT32_MIN});
      return;
    case 6:
      a.vocab = bytes.of<int64_t>({0, -1, INT64_MIN, INT64_MAX, (1 << 22) + 1});
      return;
    case 7:
      a.size = static_cast<size_t>(bytes.of<int64_t>({0, 8, -1, sizeof a - 1, sizeof a + 1}));
      return;
    case 8:
      a.set_offsets = nullptr;
      c.broken = a.groups > 0 && a.sets > 0;
      return;
    case 9:
      a.ranges = nullptr;
      c.broken = a.groups > 0 && c.ranges.size() > 0;
      return;
    case 10:
      a.row_stride = bytes.of<int64_t>({0, a.vocab - 1, -1, INT64_MAX, INT64_MAX / 2});
      c.broken = a.rows > 1;
      return;
    case 11:
      a.noise_stride = bytes.of<int64_t>({0, a.vocab - 1, -1, INT64_MAX, INT64_MAX / 2});
      c.broken = a.groups > 1 && a.noise != nullptr;
      return;
    case 12:
      a.sets = 0;
      c.broken = a.groups > 0 && a.set_offsets != nullptr;
      return;
    default:
      break;
  }
  if (a.groups == 0) {
    c.broken = false;
    return;
  }
  switch (bytes.in(0, 17)) {
    case 0:
      a.logits = nullptr;
      c.broken = a.rows > 0;  // else there is nothing to point to
      return;
    case 1:
      c.without_token = true;
      return;
    case 2:
      c.without_status = true;
      return;
    case 3:
      if (c.streams.size() > 0) {
        const int64_t at = bytes.in(0, c.streams.size() - 1);
        c.streams[at] = bytes.of<int32_t>({-2, INT32_MIN, INT32_MAX, static_cast<int32_t>(a.rows)});
        return;
      }
      break;
    case 4:
      if (c.weights.size() > 0) {
        c.weights[bytes.in(0, c.weights.size() - 1)] = bytes.of<float>({NAN, INFINITY, -INFINITY});
        return;
      }
      break;
    case 5:
      if (c.set_index.size() > 0) {
        const int64_t at = bytes.in(0, c.set_index.size() - 1);
        c.set_index[at] =
            bytes.of<int32_t>({-1, INT32_MIN, INT32_MAX, static_cast<int32_t>(a.sets)});
        return;
      }
      break;
    case 6:  // offsets that decrease; the last still tells how many ranges there are
      if (a.sets > 1) {
        const int64_t at = bytes.in(1, a.sets - 1);
        c.offsets[at] = c.offsets[a.sets] + static_cast<int32_t>(bytes.in(1, 1000));
        return;
      }
      break;
    case 7:
      if (a.sets > 0) {
        c.offsets[0] = bytes.of<int32_t>({-1, INT32_MIN});
        return;
      }
      break;
    case 8:
      if (c.ranges.size() > 0) {
        const int64_t at = bytes.in(0, c.ranges.size() - 1);
        c.ranges[at] =
            bytes.of<int32_t>({-1, INT32_MIN, INT32_MAX, static_cast<int32_t>(a.vocab + 1)});
        a.ranges = c.ranges.get();
        return;
      }
      break;
    case 9:
      set_parameter(bytes, c.temperature, a.temperature_value,
                    bytes.of<float>({-1.0f, -1e-45f, NAN, INFINITY}));
      return;
    case 10:
      set_parameter(bytes, c.top_p, a.top_p_value, bytes.of<float>({-1e-45f, 1.0000001f, NAN}));
      return;
    case 11:
      set_parameter(bytes, c.min_p, a.min_p_value, bytes.of<float>({-1e-45f, 1.0000001f, NAN}));
      return;
    case 12:
      set_parameter(bytes, c.penalty, a.penalty_value,
                    bytes.of<float>({0.0f, -0.0f, -1.0f, NAN, INFINITY}));
      return;
    case 13:
      a.contrast_k = bytes.of<int32_t>({-1, INT32_MIN});
      return;
    case 14:
      a.contrast_k = 1;
      a.contrast_alpha = bytes.of<float>({-1e-45f, 1.0000001f, NAN});
      return;
    case 15:
      a.contrast_k = 0;
      a.contrast_alpha = bytes.of<float>({1e-45f, 1.0f, NAN});
      return;
    case 16:
      a.seen = nullptr;
      c.broken = a.penalty != nullptr || a.penalty_value != 1.0f;
      return;
    default:
      break;
  }
  c.broken = false;
}

void make_case(Bytes& bytes, Case& c) {
  fastdecode_sample_args_init(&c.args);
  make_logits(bytes, c);
  make_streams(bytes, c);
  make_sets(bytes, c);
  make_parameters(bytes, c);
  c.args.threads = static_cast<int32_t>(bytes.in(0, 4));
  if (bytes.one_in(6)) break_one(bytes, c);
}

int64_t set_size(const fastdecode_sample_args& a, int64_t set) {
  if (a.sets == 0) return a.vocab;
  int64_t size = 0;
  for (int64_t r = a.set_offsets[set]; r < a.set_offsets[set + 1]; ++r) {
    size += a.ranges[2 * r + 1] - a.ranges[2 * r];
  }
  return size;
}

bool set_holds(const fastdecode_sample_args& a, int64_t set, int64_t id) {
  if (a.sets == 0) return id >= 0 && id < a.vocab;
  for (int64_t r = a.set_offsets[set]; r < a.set_offsets[set + 1]; ++r) {
    if (id >= a.ranges[2 * r] && id < a.ranges[2 * r + 1]) return true;
  }
  return false;
}

void check_group(Case& c, int64_t g, Outputs& out) {
  const fastdecode_sample_args& a = c.args;
  const int64_t set = a.set_index != nullptr ? a.set_index[g] : 0;
  const int64_t size = set_size(a, set);
  CHECK(out.status[g] >= 0 && out.status[g] <= 2);
  CHECK((out.status[g] == FASTDECODE_STATUS_EMPTY_SET) == (size == 0));
  if (out.status[g] != FASTDECODE_STATUS_OK) {
    CHECK(out.token[g] == -1);
    CHECK(out.logprob[g] == -INFINITY);
    CHECK(out.kept[g] == 0);
    return;
  }
  CHECK(set_holds(a, set, out.token[g]));
  CHECK(out.kept[g] >= 1 && out.kept[g] <= size);
  CHECK(out.logprob[g] <= 1e-5f);
  const float temperature = a.temperature != nullptr ? a.temperature[g] : a.temperature_value;
  if (temperature == 0.0f) CHECK(out.kept[g] == 1 && out.logprob[g] == 0.0f);
  const int32_t top_k = a.top_k != nullptr ? a.top_k[g] : a.top_k_value;
  const float top_p = a.top_p != nullptr ? a.top_p[g] : a.top_p_value;
  if (top_k == 1 || top_p == 0.0f) {  // the largest and its ties, equally likely
    CHECK(std::fabs(out.logprob[g] + std::log(static_cast<float>(out.kept[g]))) < 1e-5f);
  }
  note(static_cast<uint64_t>(out.kept[g] == 1 ? 1 : out.kept[g] == size ? 2 : 3));
}

// The arguments of one group alone.
fastdecode_sample_args only(const fastdecode_sample_args& a, int64_t g, int32_t& row) {
  fastdecode_sample_args one = a;
  const auto move = [&](auto& pointer, int64_t by) {
    if (pointer != nullptr) pointer += by;
  };
  one.groups = 1;
  move(one.streams, g * a.streams_per_group);
  move(one.weights, g * a.streams_per_group);
  if (a.streams == nullptr) {
    row = static_cast<int32_t>(g);
    one.streams = &row;
  }
  for (const float** pointer : {&one.temperature, &one.top_p, &one.min_p, &one.penalty}) {
    move(*pointer, g);
  }
  move(one.set_index, g);
  move(one.top_k, g);
  move(one.seed, g);
  move(one.step, g);
  move(one.seen, g * ((a.vocab + 31) / 32));
  if (a.noise_stride != FASTDECODE_REPEAT) move(one.noise, g * a.noise_stride);
  return one;
}

Outputs run(fastdecode_sample_args args, int64_t groups) {
  Outputs out(groups);
  out.write_to(args);
  CHECK(fastdecode_sample(&args) == FASTDECODE_OK);
  return out;
}

}  // namespace

void fuzz_sample(Bytes& bytes) {
  const auto owned = std::make_unique<Case>();
  Case& c = *owned;
  make_case(bytes, c);
  const int64_t places = c.args.groups >= 0 ? c.args.groups : 5;
  Outputs out(places), unwritten(places);
  out.write_to(c.args);
  if (c.without_token) c.args.token = nullptr;
  if (c.without_status) c.args.status = nullptr;
  const fastdecode_result result = fastdecode_sample(&c.args);
  if (result != FASTDECODE_OK) {
    check_refusal(result);
    CHECK(c.broken);
    CHECK(out.same_bits(unwritten));
    return;
  }
  CHECK(!c.broken);
  const int64_t groups = c.args.groups;
  note(static_cast<uint64_t>(c.args.dtype));
  note(c.args.contrast_k > 0 ? 1 : 0);
  for (int64_t g = 0; g < groups; ++g) {
    check_group(c, g, out);
    note(static_cast<uint64_t>(out.status[g]));
  }
  const int32_t threads = c.args.threads;
  for_each_isa([&] { CHECK(run(c.args, groups).same_bits(out)); });
  c.args.threads = threads == 1 ? 3 : 1;
  CHECK(run(c.args, groups).same_bits(out));
  if (groups == 0) return;
  const int64_t g = bytes.in(0, groups - 1);
  int32_t row;
  Outputs alone = run(only(c.args, g, row), 1);
  CHECK(alone.token[0] == out.token[g]);
  CHECK(memcmp(&alone.logprob[0], &out.logprob[g], sizeof(float)) == 0);
  CHECK(alone.kept[0] == out.kept[g]);
  CHECK(alone.status[0] == out.status[g]);
}

}  // namespace fuzz
