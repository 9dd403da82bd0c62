// Stands for a model: its logits depend on the prompt, the length and the last id of a row, and on
// nothing else, so that a row that is given a wrong one of these draws other ids.
#pragma once

#include <vector>

#include "grammar.h"

inline uint32_t mix(uint32_t a, uint32_t b) {
  uint32_t h = a + b * 2654435761u;
  h = (h ^ (h >> 15)) * 2246822519u;
  return h ^ (h >> 13);
}

// What is kept of a prompt: the keys and values of a real model.
using Cache = uint32_t;

inline Cache prefill(const std::vector<int32_t>& prompt) {
  Cache cache = 0;
  for (int32_t id : prompt) cache = mix(cache, static_cast<uint32_t>(id));
  return cache;
}

// Feeds one id to one row, which then has `length` ids; writes kVocab logits.
inline void step_model(Cache cache, int64_t length, int64_t input, float* logits) {
  const uint32_t context =
      mix(mix(cache, static_cast<uint32_t>(length)), static_cast<uint32_t>(input));
  for (int32_t id = 0; id < kVocab; ++id) {
    const uint32_t h = mix(context, static_cast<uint32_t>(id));
    logits[id] = static_cast<float>(static_cast<int32_t>(h >> 20)) / 512.0f;
  }
  logits[kBeginImage] += 4.0f;  // some pictures
  logits[kEndSequence] += 3.0f;
}
