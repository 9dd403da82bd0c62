// main CASES [barrier LINE | fences]: random calls of sample, advance and sample_advance, whose
// answers must be those of the CPU library. What is named after the number is left out, and then no
// answer is looked at. Built with sets of up to 48 tokens for one block, and chunks of 64.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastdecode/fastdecode.h"
#include "fastdecode/fastdecode_cuda.h"
#include "gpu_threads.h"

namespace {

using Random = std::mt19937_64;

void check(fastdecode_result result, const char* message) {
  if (result != FASTDECODE_OK) throw std::runtime_error(message);
}

int64_t up_to(Random& random, int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
}

template <typename T>
T one_of(Random& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

// Everything that a call reads and writes.
struct Case {
  int64_t vocab, groups, width, rows, capacity = 12;
  std::vector<float> logits, weights;
  std::vector<int32_t> streams, ranges, offsets, sets;
  std::vector<int32_t> set_of, tight_set_of, room, forced, following, class_ranges;
  float temperature, top_p, min_p, penalty, alpha;
  int32_t top_k, contrast_k;
  int64_t seed;

  std::vector<int64_t> token, step, limit, inputs, lengths, sequences;
  std::vector<float> logprob;
  std::vector<int32_t> kept, status, mode, seen;
  std::vector<uint8_t> finished;

  explicit Case(Random& random) {
    const bool small = random() % 3 == 0;
    vocab = small ? up_to(random, 2, 48) : up_to(random, 49, 200);
    groups = up_to(random, 1, 2);
    width = up_to(random, 1, 3);
    rows = groups * width;
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (int64_t i = 0; i < rows * vocab; ++i) logits.push_back(normal(random));
    if (random() % 8 == 0) logits[random() % logits.size()] = HUGE_VALF;
    for (int64_t i = 0; i < rows; ++i) streams.push_back(static_cast<int32_t>(i));
    for (int64_t i = 0; i < rows; ++i) weights.push_back(i % width == 0 ? 2.5f : -0.75f);
    // Two sets: one with a hole, and one of all tokens; and a third that is empty.
    const int32_t v = static_cast<int32_t>(vocab);
    ranges = {0, v / 2, v / 2 + 1, v, 0, v};
    offsets = {0, 2, 3, 3};
    for (int64_t g = 0; g < groups; ++g) sets.push_back(static_cast<int32_t>(up_to(random, 0, 9)));
    for (int32_t& set : sets) set = set == 9 ? 2 : set % 2;
    // Three modes: two draw, from a tight set near the end, and one forces a token.
    set_of = {1, 0, -1};
    tight_set_of = {0, 1, -1};
    room = {4, 2, 1};
    forced = {-1, -1, v - 1};
    following = {0, 1, 2, 0, 0, 1};
    class_ranges = {0, v / 2, 1};

    temperature = one_of(random, {0.0f, 0.8f, 0.8f, 1.3f});
    top_k = one_of(random, {0, 1, 7, 60});
    top_p = one_of(random, {1.0f, 0.9f, 0.4f});
    min_p = one_of(random, {0.0f, 0.05f});
    penalty = one_of(random, {1.0f, 1.3f});
    contrast_k = one_of(random, {0, 0, 3});
    alpha = contrast_k > 0 ? 0.1f : 0.0f;
    seed = up_to(random, 0, 1 << 30);

    token.assign(groups, -77);
    logprob.assign(groups, -77.0f);
    kept = status = std::vector<int32_t>(groups, -77);
    for (int64_t g = 0; g < groups; ++g) {
      mode.push_back(static_cast<int32_t>(up_to(random, 0, 2)));
      step.push_back(up_to(random, 0, 5));
      limit.push_back(up_to(random, 4, 12));
      finished.push_back(random() % 6 == 0);
    }
    for (int64_t i = 0; i < groups * ((vocab + 31) / 32); ++i) {
      seen.push_back(static_cast<int32_t>(random()));
    }
    inputs.assign(rows, -77);
    lengths.assign(rows, 9);
    sequences.assign(groups * capacity, -77);
  }

  fastdecode_sample_args sample(bool advances) {
    fastdecode_sample_args a;
    fastdecode_sample_args_init(&a);
    a.logits = logits.data();
    a.dtype = FASTDECODE_FLOAT32;
    a.threads = 1;
    a.rows = rows;
    a.vocab = a.row_stride = vocab;
    a.groups = groups;
    a.streams_per_group = width;
    a.streams = streams.data();
    a.weights = weights.data();
    a.ranges = ranges.data();
    a.set_offsets = offsets.data();
    a.sets = 3;
    if (!advances) a.set_index = sets.data();
    a.temperature_value = temperature;
    a.top_k_value = top_k;
    a.top_p_value = top_p;
    a.min_p_value = min_p;
    a.penalty_value = penalty;
    a.seen = seen.data();
    a.contrast_k = contrast_k;
    a.contrast_alpha = alpha;
    a.seed_value = seed;
    if (!advances) a.step_value = 5;
    a.token = token.data();
    a.logprob = logprob.data();
    a.kept = kept.data();
    a.status = status.data();
    return a;
  }

  // `alone`: not of a sample_advance.
  fastdecode_advance_args advance(bool alone) {
    fastdecode_advance_args a;
    fastdecode_advance_args_init(&a);
    a.grammar = {3,
                 2,
                 set_of.data(),
                 tight_set_of.data(),
                 room.data(),
                 forced.data(),
                 following.data(),
                 class_ranges.data(),
                 1};
    if (alone) {
      a.groups = groups;
      a.streams_per_group = width;
      a.streams = streams.data();
      a.rows = rows;
      a.vocab = vocab;
      a.token = token.data();
    }
    a.mode = mode.data();
    a.step = step.data();
    a.limit = limit.data();
    a.finished = finished.data();
    a.inputs = inputs.data();
    a.lengths = lengths.data();
    a.seen = seen.data();
    a.sequences = sequences.data();
    a.capacity = capacity;
    return a;
  }

  bool same_as(const Case& c) const {
    return token == c.token && kept == c.kept && status == c.status && mode == c.mode &&
           step == c.step && finished == c.finished && inputs == c.inputs && seen == c.seen &&
           lengths == c.lengths && sequences == c.sequences &&
           std::memcmp(logprob.data(), c.logprob.data(), sizeof(float) * logprob.size()) == 0;
  }
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<void, Free> workspace(const fastdecode_sample_args& sample, size_t* bytes) {
  check(fastdecode_cuda_workspace(&sample, 0, bytes), fastdecode_cuda_last_error());
  std::unique_ptr<void, Free> memory(std::aligned_alloc(256, *bytes + 256));
  std::memset(memory.get(), 0xa5, *bytes);
  return memory;
}

enum Operation { kSample, kAdvance, kSampleAdvance };

void call_cpu(Case& c, Operation operation) {
  const fastdecode_sample_args sample = c.sample(operation == kSampleAdvance);
  const fastdecode_advance_args advance = c.advance(operation == kAdvance);
  check(operation == kSample    ? fastdecode_sample(&sample)
        : operation == kAdvance ? fastdecode_advance(&advance)
                                : fastdecode_sample_advance(&sample, &advance),
        fastdecode_last_error());
}

void call_cuda(Case& c, Operation operation) {
  const fastdecode_sample_args sample = c.sample(operation == kSampleAdvance);
  const fastdecode_advance_args advance = c.advance(operation == kAdvance);
  size_t bytes = 0;
  const auto memory = workspace(sample, &bytes);
  check(operation == kSample ? fastdecode_cuda_sample(&sample, 0, memory.get(), bytes, nullptr)
        : operation == kAdvance
            ? fastdecode_cuda_advance(&advance, nullptr)
            : fastdecode_cuda_sample_advance(&sample, &advance, 0, memory.get(), bytes, nullptr),
        fastdecode_cuda_last_error());
}

int run(int cases) {
  int drawn = 0, without_answer = 0, shared_out = 0;
  for (int i = 0; i < cases; ++i) {
    Random random(static_cast<uint64_t>(i));
    const Case given(random);
    const Operation operation = i % 8 == 7 ? kAdvance : i % 2 == 0 ? kSample : kSampleAdvance;
    Case expected = given, got = given;
    if (operation == kAdvance) {
      for (int64_t& token : expected.token) token = static_cast<int64_t>(random() % given.vocab);
      got.token = expected.token;
    }
    call_cpu(expected, operation);
    call_cuda(got, operation);
    if (dropped_barrier != 0 || drops_fences) continue;  // the answer may be any
    if (!got.same_as(expected)) {
      std::printf("case %d: not the answer of the CPU library\n", i);
      return 1;
    }
    if (operation == kAdvance) continue;
    shared_out += given.vocab > 48;
    for (const int32_t status : expected.status) ++(status == 0 ? drawn : without_answer);
  }
  std::printf("%d drawn, %d without an answer, %d calls shared out\n", drawn, without_answer,
              shared_out);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 4 && std::string(argv[2]) == "barrier") dropped_barrier = std::atoi(argv[3]);
    if (argc == 3 && std::string(argv[2]) == "fences") drops_fences = true;
    return run(argc > 1 ? std::atoi(argv[1]) : 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
