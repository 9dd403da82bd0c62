// What the sampler's parts share: checked arguments, the per-thread scratch, one entry per ISA.
// Plain C types only, since this header is included by units built for different instruction sets.
#pragma once

#include <stdint.h>

#include "fastdecode/fastdecode.h"

namespace fastdecode {

constexpr int kSampleTile = 64;  // ids whose largest z is noted, to pass over them together

// One thread's working memory for sets of up to `capacity` ids.
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

// Samples one group from one set (0 where there are no sets) as token `step` of its sequence: reads
// checked arguments but set_index and step, writes element `group` of the four outputs. The scratch
// holds at least vocab ids. A large set is shared out to up to `threads` threads. One for each
// instruction set.
using SampleGroup = void(const fastdecode_sample_args& args, int64_t group, int64_t set,
                         int64_t step, int threads, const SampleScratch& scratch);
SampleGroup sample_group_portable;
#if defined(FASTDECODE_X86)
SampleGroup sample_group_avx2, sample_group_avx512;
#endif

// The calling thread's scratch for `capacity` ids, grown if needed; null when out of memory.
// Freed when the thread ends.
const SampleScratch* thread_scratch(int64_t capacity);

}  // namespace fastdecode
