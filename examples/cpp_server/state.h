// What the library's calls read and write of all slots, as arrays in memory of the CPU or of a GPU.
#pragma once

#include <fastdecode/fastdecode.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

constexpr int64_t kMaxStreams = 2;  // of a slot: the sequence, and the one that it is guided by

struct Sizes {
  int64_t slots;  // requests at once
  int64_t vocab;  // logits of a row
};

// Gives so many bytes, and takes them back when the last owner is gone.
using Allocate = std::shared_ptr<void> (*)(size_t bytes);

inline std::shared_ptr<void> host_memory(size_t bytes) {
  void* memory = std::calloc(bytes, 1);
  if (memory == nullptr) throw std::bad_alloc();
  return {memory, std::free};
}

// The small arrays lie in one piece, in the order in which they change hands, so that one copy
// brings to a GPU what a call reads, [begin, results), and one brings back what it has changed,
// [moved, end).
struct State {
  State(const Sizes& wanted, Allocate allocate) : sizes(wanted), words((wanted.vocab + 31) / 32) {
    lay_out(nullptr);
    small = allocate(end - begin);
    lay_out(static_cast<char*>(small.get()));
    large[0] = allocate(sizeof(float) * sizes.slots * kMaxStreams * sizes.vocab);
    large[1] = allocate(sizeof(uint32_t) * sizes.slots * words);
    logits = static_cast<float*>(large[0].get());
    seen = static_cast<uint32_t*>(large[1].get());
  }

  const Sizes sizes;
  const int64_t words;  // of a set of seen tokens

  // The server's to set. By slot and stream:
  int32_t* streams;  // the row of the logits
  float* weights;
  // By slot:
  int64_t *seed, *limit;
  int32_t* top_k;
  float *temperature, *top_p, *min_p, *penalty;

  // Set when a slot gets a request, and moved on by calls. By slot:
  int64_t* step;  // tokens of the sequence, those of the prompt included
  int32_t* mode;  // the grammar's place
  uint8_t* finished;

  // Results. By slot:
  int64_t* token;
  float* logprob;
  int32_t *kept, *status;

  // Large ones. The calls keep what a slot has seen.
  float* logits;   // (slots * kMaxStreams, vocab)
  uint32_t* seen;  // by slot, `words` each

  char *begin, *moved, *results, *end;

 private:
  void lay_out(char* memory) {
    const int64_t slots = sizes.slots;
    char* at = begin = memory;
    const auto take = [&at](auto*& array, int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (sizeof *array * count + 7) / 8 * 8;
    };
    take(streams, slots * kMaxStreams);
    take(weights, slots * kMaxStreams);
    take(seed, slots);
    take(limit, slots);
    take(top_k, slots);
    take(temperature, slots);
    take(top_p, slots);
    take(min_p, slots);
    take(penalty, slots);
    moved = at;
    take(step, slots);
    take(mode, slots);
    take(finished, slots);
    results = at;
    take(token, slots);
    take(logprob, slots);
    take(kept, slots);
    take(status, slots);
    end = at;
  }

  std::shared_ptr<void> small, large[2];
};

// Arguments of the library's calls that point to the state; the grammar is bound elsewhere.
inline void bind(const State& state, fastdecode_sample_args& sample,
                 fastdecode_advance_args& advance) {
  const Sizes& sizes = state.sizes;
  fastdecode_sample_args_init(&sample);
  sample.logits = state.logits;
  sample.rows = sizes.slots * kMaxStreams;
  sample.vocab = sizes.vocab;
  sample.row_stride = sizes.vocab;
  sample.groups = sizes.slots;
  sample.streams_per_group = kMaxStreams;
  sample.streams = state.streams;
  sample.weights = state.weights;
  sample.temperature = state.temperature;
  sample.top_k = state.top_k;
  sample.top_p = state.top_p;
  sample.min_p = state.min_p;
  sample.penalty = state.penalty;
  sample.seed = state.seed;
  sample.token = state.token;
  sample.logprob = state.logprob;
  sample.kept = state.kept;
  sample.status = state.status;

  // Its groups, streams and rows are the sample's. Inputs, lengths and sequences are not asked for:
  // a slot's rows change from step to step, and the server reads every token.
  fastdecode_advance_args_init(&advance);
  advance.mode = state.mode;
  advance.step = state.step;
  advance.limit = state.limit;
  advance.finished = state.finished;
  advance.seen = reinterpret_cast<int32_t*>(state.seen);
  sample.seen = advance.seen;
}
