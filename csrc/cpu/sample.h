// What the sampler's parts share: the scratch memory of a thread, and one function for each
// instruction set. Units built for different instruction sets include this header, so it has only
// plain C types.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

constexpr int kSampleTile = 64;  // tokens whose largest z is stored, to skip them together

// One thread's working memory for sets of up to `capacity` tokens.
struct SampleScratch {
  int64_t capacity;
  float* gathered;  // (capacity + a tile,) z of the whole set
  float* expert;    // (capacity + a tile,) logits of the first stream, for contrast
  float* tops;      // (tiles,)
  float* z;         // (capacity + a tile,) of survivors, with at, p and places
  int32_t* at;      // (capacity + a tile,)
  float* p;         // (capacity + a tile,)
  int32_t* places;  // (capacity + a tile,)
};

// Samples token `step` of one group's sequence from one set (0 where there are no sets), and writes
// element `group` of the four outputs. The arguments have been checked; set_index and step are not
// read. The scratch holds at least vocab tokens. Up to `threads` threads share a large set. There
// is one such function for each instruction set.
using SampleGroup = void(const fastdecode_sample_args& args, int64_t group, int64_t set,
                         int64_t step, int threads, const SampleScratch& scratch);
SampleGroup sample_group_portable;
#if defined(FASTDECODE_X86)
SampleGroup sample_group_avx2, sample_group_avx512;
#endif

// The calling thread's scratch for `capacity` tokens, grown if needed; null when out of memory. It
// is freed when the thread ends.
const SampleScratch* thread_scratch(int64_t capacity);

}  // namespace fastdecode
