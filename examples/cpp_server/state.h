// What the library's calls read and write of all slots, as arrays in memory of the CPU or of a GPU.
#pragma once

#include <fastdecode/fastdecode.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "request.h"

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
  State(int64_t slots, Allocate allocate) {
    const int64_t rows = slots * kMaxStreams;
    lay_out(nullptr, slots);
    small = allocate(end - begin);
    lay_out(static_cast<char*>(small.get()), slots);
    large[0] = allocate(sizeof(float) * rows * kVocab);
    large[1] = allocate(sizeof(uint32_t) * slots * kWords);
    large[2] = allocate(sizeof(int64_t) * slots * kMaxLimit);
    logits = static_cast<float*>(large[0].get());
    seen = static_cast<uint32_t*>(large[1].get());
    sequences = static_cast<int64_t*>(large[2].get());
  }

  static constexpr int64_t kWords = (kVocab + 31) / 32;  // of a set of seen ids

  // The server's to set. By row:
  int32_t* streams;
  float* weights;
  // By slot:
  int64_t *seed, *limit;
  int32_t* top_k;
  float *temperature, *top_p, *min_p, *penalty;

  // Set when a slot gets a request or a stream, and moved on by calls. By row:
  int64_t *inputs, *lengths;
  // By slot:
  int64_t* step;
  int32_t* mode;
  uint8_t* finished;

  // Results. By slot:
  int64_t* token;
  float* logprob;
  int32_t *kept, *status;

  // Large ones. The calls keep what a slot has seen, and its sequence.
  float* logits;       // by row, kVocab each
  uint32_t* seen;      // by slot, kWords each
  int64_t* sequences;  // by slot, kMaxLimit each

  char *begin, *moved, *results, *end;

 private:
  void lay_out(char* memory, int64_t slots) {
    const int64_t rows = slots * kMaxStreams;
    char* at = begin = memory;
    const auto take = [&at](auto*& array, int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      at += (sizeof *array * count + 7) / 8 * 8;
    };
    take(streams, rows);
    take(weights, rows);
    take(seed, slots);
    take(limit, slots);
    take(top_k, slots);
    take(temperature, slots);
    take(top_p, slots);
    take(min_p, slots);
    take(penalty, slots);
    moved = at;
    take(inputs, rows);
    take(lengths, rows);
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

  std::shared_ptr<void> small, large[3];
};

// Arguments of the library's calls that point to the state; the grammar is bound elsewhere.
inline void bind(const State& state, int64_t slots, fastdecode_sample_args& sample,
                 fastdecode_advance_args& advance) {
  fastdecode_sample_args_init(&sample);
  sample.logits = state.logits;
  sample.rows = slots * kMaxStreams;
  sample.vocab = kVocab;
  sample.row_stride = kVocab;
  sample.groups = slots;
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

  fastdecode_advance_args_init(&advance);  // its groups, streams and rows are the sample's
  advance.mode = state.mode;
  advance.step = state.step;
  advance.limit = state.limit;
  advance.finished = state.finished;
  advance.inputs = state.inputs;
  advance.lengths = state.lengths;
  advance.seen = reinterpret_cast<int32_t*>(state.seen);
  sample.seen = advance.seen;
  advance.sequences = state.sequences;
  advance.capacity = kMaxLimit;
}
