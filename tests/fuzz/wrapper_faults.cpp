// What fastdecode.hpp refuses, and what it does where there is no memory. Under sanitizers, since
// some of these faults once were arithmetic that overflows or memory that is written behind its
// end.

#include <cstdio>
#include <cstdlib>
#include <fastdecode/fastdecode.hpp>
#include <new>
#include <string>
#include <vector>

#include "fuzz.h"

namespace {

long allocations_left = -1;  // before `new` fails; negative: it never does

}  // namespace

void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

constexpr int64_t kVocab = 40;
long checked = 0, wrong = 0;

template <typename Call>
void thrown(Call call, const std::string& expected) {
  ++checked;
  try {
    call();
    fprintf(stderr, "not refused; expected \"%s\"\n", expected.c_str());
  } catch (const fastdecode::Error& error) {
    if (error.what() == expected) return;
    fprintf(stderr, "expected \"%s\"\ngot \"%s\"\n", expected.c_str(), error.what());
  }
  ++wrong;
}

void sizes() {
  constexpr int64_t kMost = INT64_MAX;
  const std::vector<float> logits(kVocab);
  const std::vector<int32_t> one = {0};
  fastdecode::Sampler sampler;
  fastdecode::SampleOptions options;
  options.streams = one;
  thrown([&] { sampler.sample({logits.data(), 0, FASTDECODE_FLOAT32, 0, kMost, kMost}, options); },
         "vocab = 9223372036854775807: must be in [1, 4194304]");
  thrown([] { fastdecode::GroupState(1, 1, kMost, 1); },
         "GroupState: a size is 288230376151711744; must be in [0, 2^47]");
  fastdecode::GroupState state(1, 1, kVocab, 1);
  fastdecode::Grammar grammar;
  grammar.set_of = grammar.forced = {-1};
  grammar.following = {0};
  const std::vector<int64_t> token = {0};
  thrown([&] { fastdecode::advance(token, grammar, state, 1, kMost); },
         "seen: has 2 elements; must have at least 288230376151711744");
  thrown([&] { sampler.sample({logits, 2, kVocab}); },
         "logits: has 40 elements; must have at least 80");
  thrown([&] { sampler.sample({logits.data(), logits.size(), FASTDECODE_FLOAT32, 3, 8, 20}); },
         "logits: has 40 elements; must have at least 48");
  CHECK(sampler.sample({logits.data(), logits.size(), FASTDECODE_FLOAT32, 2, 8, 32}).token.size() ==
        2);
}

// Values of two bytes are never read as float32, which have four.
void dtypes() {
  const std::vector<uint16_t> halves(2 * kVocab);
  fastdecode::Sampler sampler;
  thrown([&] { sampler.sample({halves, FASTDECODE_FLOAT32, 2, kVocab}); },
         "dtype = 0: must be 1 (bfloat16) or 2 (float16) for values of two bytes");
  CHECK(sampler.sample({halves, FASTDECODE_BFLOAT16, 2, kVocab}).kept[1] == kVocab);
  CHECK(sampler.sample({halves, FASTDECODE_FLOAT16, 2, kVocab}).kept[1] == kVocab);
}

// What an empty span means does not depend on whether its vector once had elements.
void empty_spans() {
  const std::vector<float> logits(2 * kVocab);
  fastdecode::Sampler sampler;
  for (const size_t room : {0, 8}) {
    std::vector<int32_t> none;
    std::vector<float> no_weights;
    none.reserve(room);
    no_weights.reserve(room);
    fastdecode::SampleOptions options;
    options.streams = options.set_index = options.seen = none;
    options.weights = options.noise = no_weights;
    CHECK(sampler.sample({logits, 2, kVocab}, options).token.size() == 2);
  }
}

// A sampler whose results could not grow can be used on.
void out_of_memory() {
  const std::vector<float> logits(64 * kVocab);
  for (long after = 0; after < 4; ++after) {
    fastdecode::Sampler sampler;
    allocations_left = after;
    bool thrown = false;
    try {
      sampler.sample({logits, 64, kVocab});
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    allocations_left = -1;
    CHECK(thrown);
    CHECK(sampler.sample({logits, 64, kVocab}).status[63] == FASTDECODE_STATUS_OK);
  }
  // So can sets of tokens, of which the one that found no memory is none.
  fastdecode::TokenSets sets;
  const std::vector<fastdecode::TokenSets::Range> many(100, {0, 0});
  for (long after = 0; after < 2; ++after) {
    allocations_left = after;
    bool thrown = false;
    try {
      sets.add(fastdecode::Span<const fastdecode::TokenSets::Range>(many));
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    allocations_left = -1;
    CHECK(thrown);
    CHECK(sets.size() == 0 && sets.ranges().size() == 0);
  }
}

}  // namespace

int main() {
  sizes();
  dtypes();
  empty_spans();
  out_of_memory();
  printf("calls %ld, wrong %ld\n", checked, wrong);
  return wrong == 0 ? 0 : 1;
}
