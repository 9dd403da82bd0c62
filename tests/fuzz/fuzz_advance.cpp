// fastdecode_advance against the header's words, and fastdecode_sample_advance against a draw and
// an advance, one after the other.

#include <memory>

#include "fuzz.h"

namespace fuzz {
namespace {

// What an advance writes.
struct State {
  Exact<int32_t> mode, seen;
  Exact<int64_t> step, inputs, lengths, sequences;
  Exact<uint8_t> finished;

  void write_to(fastdecode_advance_args& a) {
    a.mode = mode.get();
    a.step = step.get();
    a.finished = finished.get();
    if (a.inputs != nullptr) a.inputs = inputs.get();
    if (a.lengths != nullptr) a.lengths = lengths.get();
    if (a.seen != nullptr) a.seen = seen.get();
    if (a.sequences != nullptr) a.sequences = sequences.get();
  }
  bool same_bits(const State& other) const {
    return mode.same_bits(other.mode) && seen.same_bits(other.seen) && step.same_bits(other.step) &&
           inputs.same_bits(other.inputs) && lengths.same_bits(other.lengths) &&
           sequences.same_bits(other.sequences) && finished.same_bits(other.finished);
  }
};

struct Case {
  fastdecode_advance_args args;
  Exact<int32_t> set_of, tight_set_of, room, forced, following, class_ranges, streams;
  Exact<int64_t> token, limit;
  State state;
  int64_t sets;
  bool broken = false;  // must be refused
};

void make_grammar(Bytes& bytes, Case& c) {
  fastdecode_grammar& t = c.args.grammar;
  t.modes = bytes.in(1, 5);
  t.classes = bytes.in(1, 3);
  c.set_of = Exact<int32_t>(t.modes);
  c.tight_set_of = Exact<int32_t>(t.modes);
  c.room = Exact<int32_t>(t.modes);
  c.forced = Exact<int32_t>(t.modes);
  c.following = Exact<int32_t>(t.modes * t.classes);
  for (int64_t m = 0; m < t.modes; ++m) {
    c.set_of[m] = static_cast<int32_t>(bytes.in(-1, c.sets - 1));
    c.tight_set_of[m] = static_cast<int32_t>(bytes.in(-1, c.sets - 1));
    c.room[m] = bytes.one_in(8) ? bytes.of<int32_t>({INT32_MIN, INT32_MAX})
                                : static_cast<int32_t>(bytes.in(-1, 9));
    c.forced[m] = bytes.one_in(2) ? -1 : static_cast<int32_t>(bytes.in(-1, c.args.vocab - 1));
  }
  for (int64_t i = 0; i < c.following.size(); ++i) {
    c.following[i] = static_cast<int32_t>(bytes.in(0, t.modes - 1));
  }
  t.class_range_count = bytes.in(0, 4);
  c.class_ranges = Exact<int32_t>(3 * t.class_range_count);
  int32_t end = 0;
  for (int64_t r = 0; r < t.class_range_count; ++r) {
    const int32_t lo = end + static_cast<int32_t>(bytes.in(0, 20));
    end = lo + static_cast<int32_t>(bytes.in(0, 20));
    c.class_ranges[3 * r] = lo;
    c.class_ranges[3 * r + 1] = end;
    c.class_ranges[3 * r + 2] = static_cast<int32_t>(bytes.in(0, t.classes - 1));
  }
  t.set_of = c.set_of.get();
  t.tight_set_of = bytes.one_in(3) ? nullptr : c.tight_set_of.get();
  t.room = bytes.one_in(3) ? nullptr : c.room.get();
  t.forced = c.forced.get();
  t.following = c.following.get();
  t.class_ranges = c.class_ranges.get();
}

void make_state(Bytes& bytes, Case& c) {
  fastdecode_advance_args& a = c.args;
  State& s = c.state;
  const int64_t words = (a.vocab + 31) / 32;
  s.mode = Exact<int32_t>(a.groups);
  s.step = Exact<int64_t>(a.groups);
  s.finished = Exact<uint8_t>(a.groups);
  c.limit = Exact<int64_t>(a.groups);
  a.capacity = bytes.in(0, 12);
  const bool writes_sequences = bytes.one_in(2) && a.capacity > 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    s.mode[g] = static_cast<int32_t>(bytes.in(0, a.grammar.modes - 1));
    s.step[g] = writes_sequences  ? bytes.in(0, a.capacity - 1)
                : bytes.one_in(6) ? bytes.of<int64_t>({(1ll << 62) - 1, 1ll << 40})
                                  : bytes.in(0, 20);
    s.finished[g] = bytes.one_in(4) ? static_cast<uint8_t>(bytes.in(1, 2)) : 0;
    c.limit[g] = bytes.one_in(6) ? bytes.any_int64() : bytes.in(-1, 25);
  }
  s.inputs = Exact<int64_t>(a.rows).fill(-7);
  s.lengths = Exact<int64_t>(a.rows).fill(3);
  s.seen = Exact<int32_t>(a.groups * words);
  Random random(bytes.bits(1));
  for (int64_t i = 0; i < s.seen.size(); ++i) s.seen[i] = static_cast<int32_t>(random.next());
  s.sequences = Exact<int64_t>(a.groups * a.capacity).fill(-7);
  if (!bytes.one_in(3)) a.limit = c.limit.get();
  if (bytes.one_in(2)) a.inputs = s.inputs.get();
  if (bytes.one_in(2)) a.lengths = s.lengths.get();
  if (bytes.one_in(2)) a.seen = s.seen.get();
  if (writes_sequences) a.sequences = s.sequences.get();
  s.write_to(a);
}

void make_case(Bytes& bytes, Case& c) {
  fastdecode_advance_args& a = c.args;
  fastdecode_advance_args_init(&a);
  a.groups = bytes.in(0, 5);
  a.rows = a.groups + bytes.in(0, 4);
  a.vocab = bytes.in(1, 100);
  c.sets = bytes.in(1, 3);
  if (bytes.one_in(2)) {  // no row twice
    a.streams_per_group = bytes.in(1, 3);
    c.streams = Exact<int32_t>(a.groups * a.streams_per_group);
    int32_t row = 0;
    for (int64_t i = 0; i < c.streams.size(); ++i) {
      c.streams[i] = row < a.rows && !bytes.one_in(3) ? row++ : -1;
    }
    a.streams = c.streams.get();
  }
  make_grammar(bytes, c);
  make_state(bytes, c);
  c.token = Exact<int64_t>(a.groups);
  for (int64_t g = 0; g < a.groups; ++g) c.token[g] = bytes.in(-1, a.vocab - 1);
  a.token = c.token.get();
}

// One thing that must be refused while a group is running.
void break_one(Bytes& bytes, Case& c) {
  fastdecode_advance_args& a = c.args;
  int64_t g = 0;
  while (g < a.groups && c.state.finished[g] != 0) ++g;
  c.broken = g < a.groups;
  if (!c.broken) return;
  const int32_t bad = bytes.of<int32_t>({-2, INT32_MIN, INT32_MAX, 1 << 20});
  const int64_t mode = c.state.mode[g], classes = a.grammar.classes;
  switch (bytes.in(0, 11)) {
    case 0:
      c.state.mode[g] = bad;
      return;
    case 1:
      c.state.step[g] = bytes.of<int64_t>({-1, INT64_MIN, 1ll << 62, INT64_MAX});
      return;
    case 2:
      c.state.finished[g] = static_cast<uint8_t>(bytes.in(3, 255));
      return;
    case 3:
      c.token[g] = bytes.of<int64_t>({-2, INT64_MIN, INT64_MAX, a.vocab});
      return;
    case 4:
      c.following[mode * classes + bytes.in(0, classes - 1)] = bad;
      return;
    case 5:
      c.forced[mode] = bad;
      return;
    case 6:
      a.size = static_cast<size_t>(bytes.of<int64_t>({0, 8, -1}));
      return;
    case 7:
      a.grammar.modes = bytes.of<int64_t>({0, -1, INT64_MIN});
      return;
    case 8:
      a.token = nullptr;
      return;
    case 9:
      a.groups = bytes.of<int64_t>({-1, INT64_MIN});
      return;
    case 10:
      if (c.class_ranges.size() > 0) {
        c.class_ranges[3 * bytes.in(0, a.grammar.class_range_count - 1) + 2] = bad;
        return;
      }
      break;
    default:
      if (a.sequences != nullptr) {
        c.state.step[g] = a.capacity;
        return;
      }
  }
  c.broken = false;
}

struct Coming {
  bool ends;
  int32_t set, forced;
};

// What the header says that comes next.
Coming coming(Case& c, const State& s, int64_t g) {
  State& state = const_cast<State&>(s);
  const int32_t mode = state.mode[g];
  const fastdecode_grammar& t = c.args.grammar;
  if (c.args.limit != nullptr && c.limit[g] <= state.step[g]) return {true, -1, -1};
  int32_t set = c.set_of[mode];
  const bool limited = c.args.limit != nullptr && t.tight_set_of != nullptr && t.room != nullptr;
  if (limited && c.limit[g] - state.step[g] < c.room[mode]) set = c.tight_set_of[mode];
  return {set < 0 && c.forced[mode] < 0, set, set < 0 ? c.forced[mode] : -1};
}

// The same advance, plainly.
State expected_after(Case& c, const State& before, Exact<int64_t>& token) {
  State s = before;
  const fastdecode_advance_args& a = c.args;
  const int64_t words = (a.vocab + 31) / 32;
  for (int64_t g = 0; g < a.groups; ++g) {
    if (s.finished[g] != 0) continue;
    if (coming(c, s, g).ends || token[g] < 0) {
      s.finished[g] = coming(c, s, g).ends ? FASTDECODE_ENDED : FASTDECODE_FAILED;
      continue;
    }
    for (int64_t k = 0; k < a.streams_per_group; ++k) {
      const int64_t row = a.streams != nullptr ? c.streams[g * a.streams_per_group + k] : g;
      if (row >= 0 && a.inputs != nullptr) s.inputs[row] = token[g];
      if (row >= 0 && a.lengths != nullptr) s.lengths[row] += 1;
    }
    if (a.seen != nullptr) {
      int32_t& word = s.seen[g * words + token[g] / 32];
      word = static_cast<int32_t>(static_cast<uint32_t>(word) | 1u << token[g] % 32);
    }
    if (a.sequences != nullptr) s.sequences[g * a.capacity + s.step[g]] = token[g];
    int32_t token_class = 0;
    for (int64_t r = 0; r < a.grammar.class_range_count; ++r) {
      if (token[g] >= c.class_ranges[3 * r] && token[g] < c.class_ranges[3 * r + 1]) {
        token_class = c.class_ranges[3 * r + 2];
      }
    }
    s.mode[g] = c.following[s.mode[g] * a.grammar.classes + token_class];
    s.step[g] += 1;
    if (coming(c, s, g).ends) s.finished[g] = FASTDECODE_ENDED;
  }
  return s;
}

// Draws of the same tokens by fastdecode_sample, each group with the set and step that the grammar
// gives it, then the plain advance.
void check_sample_advance(Bytes& bytes, Case& c) {
  fastdecode_advance_args& a = c.args;
  const int64_t groups = a.groups;
  const State before = c.state;
  Exact<float> logits(a.rows * a.vocab);
  Random random(bytes.bits(2));
  for (int64_t i = 0; i < logits.size(); ++i) {
    logits[i] = random.below(9) == 0 ? -INFINITY : static_cast<float>(random.below(64)) / 8.0f;
  }
  if (bytes.one_in(3) && logits.size() > 0) logits[bytes.in(0, logits.size() - 1)] = NAN;
  std::vector<int32_t> ranges, offsets = {0};
  for (int64_t s = 0; s < c.sets; ++s) {
    const int64_t lo = bytes.in(0, a.vocab), hi = bytes.in(lo, a.vocab);
    ranges.insert(ranges.end(), {static_cast<int32_t>(lo), static_cast<int32_t>(hi)});
    offsets.push_back(static_cast<int32_t>(ranges.size() / 2));
  }
  fastdecode_sample_args draw;
  fastdecode_sample_args_init(&draw);
  draw.logits = logits.get();
  draw.rows = a.rows;
  draw.vocab = draw.row_stride = a.vocab;
  draw.groups = groups;
  draw.streams_per_group = a.streams_per_group;
  draw.streams = a.streams;
  draw.ranges = ranges.data();
  draw.set_offsets = offsets.data();
  draw.sets = c.sets;
  draw.seed_value = bytes.any_int64();
  draw.top_k_value = static_cast<int32_t>(bytes.in(0, 5));
  draw.temperature_value = bytes.of<float>({0.0f, 1.0f, 0.5f});
  draw.threads = static_cast<int32_t>(bytes.in(1, 3));
  if (a.seen != nullptr) {
    draw.seen = a.seen;
    draw.penalty_value = 1.5f;
  }
  Exact<int64_t> token(groups);
  Exact<float> logprob(groups);
  Exact<int32_t> kept(groups), status(groups);
  token.fill(-99);
  draw.token = token.get();
  draw.logprob = logprob.get();
  draw.kept = kept.get();
  draw.status = status.get();
  const fastdecode_result result = fastdecode_sample_advance(&draw, &a);
  if (result != FASTDECODE_OK) {
    check_refusal(result);
    CHECK(c.broken);
    CHECK(c.state.same_bits(before));
    for (int64_t g = 0; g < groups; ++g) CHECK(token[g] == -99);
    return;
  }
  Exact<int64_t> expected(groups);
  State start = before;
  for (int64_t g = 0; g < groups; ++g) {
    const Coming next = coming(c, before, g);
    int32_t wanted = FASTDECODE_STATUS_OK;
    expected[g] = next.forced;
    if (start.finished[g] != 0 || next.ends) {
      expected[g] = -1;
      wanted = FASTDECODE_STATUS_FINISHED;
    } else if (next.set >= 0) {
      int32_t set = next.set, row = static_cast<int32_t>(g), one_kept, one_status;
      float one_logprob;
      fastdecode_sample_args one = draw;
      one.groups = 1;
      one.streams = a.streams != nullptr ? a.streams + g * a.streams_per_group : &row;
      one.set_index = &set;
      one.step_value = start.step[g];
      if (one.seen != nullptr) one.seen = start.seen.get() + g * ((a.vocab + 31) / 32);
      one.token = &expected[g];
      one.logprob = &one_logprob;
      one.kept = &one_kept;
      one.status = &one_status;
      CHECK(fastdecode_sample(&one) == FASTDECODE_OK);
      CHECK(memcmp(&one_logprob, &logprob[g], sizeof(float)) == 0);
      CHECK(one_kept == kept[g]);
      wanted = one_status;
    }
    CHECK(token[g] == expected[g]);
    CHECK(status[g] == wanted);
    note(static_cast<uint64_t>(wanted));
  }
  CHECK(c.state.same_bits(expected_after(c, before, expected)));
}

}  // namespace

void fuzz_advance(Bytes& bytes) {
  const auto owned = std::make_unique<Case>();
  Case& c = *owned;
  make_case(bytes, c);
  const bool draws = bytes.one_in(2);
  if (draws) {
    check_sample_advance(bytes, c);
    return;
  }
  if (bytes.one_in(3)) break_one(bytes, c);
  const State before = c.state;
  const fastdecode_result result = fastdecode_advance(&c.args);
  if (result != FASTDECODE_OK) {
    check_refusal(result);
    CHECK(c.broken);
    CHECK(c.state.same_bits(before));
    return;
  }
  CHECK(!c.broken);
  CHECK(c.state.same_bits(expected_after(c, before, c.token)));
  for (int64_t g = 0; g < c.args.groups; ++g) note(c.state.finished[g]);
}

}  // namespace fuzz
