// The workspace of a call in which several blocks share a group. The positions of a group's set are
// cut into C chunks of kChunk positions. Each group has
//
//   State                 set up by the block of its first chunk in `mix`
//   uint64_t (kDepths)    mass at each depth below the top
//   uint64_t (C)          outcome of each chunk: the order key of its largest z, 0 if it has none,
//                         or the reason why no token is drawn for the group
//   float    (C * kChunk) z by position; -inf if the token is not kept
//   float    (C * kChunk) listed z, of the depths in which a cut lies
//   uint32_t (kDepths)    number of tokens at each depth
#pragma once

#include "cuda/block.h"
#include "cuda/result.h"

namespace fastdecode {
namespace {

// 64 blocks share 65,536 tokens. Tests build with smaller chunks.
#if !defined(FASTDECODE_CUDA_CHUNK)
#define FASTDECODE_CUDA_CHUNK 1024
#endif
constexpr int kChunk = FASTDECODE_CUDA_CHUNK;
constexpr int kDepths = 1024;  // 128 for each doubling of top - z + 2, up to 510
static_assert(2 * kDepths <= kBins, "a block's counts and masses share an array of bins");

// Outcomes above every key. A group's outcome is the largest of its chunks'.
constexpr uint64_t kEmpty = kWrong + 1, kIdle = kWrong + 2;

struct State {
  uint64_t best, mass;              // of the kept tokens: the largest rank, and the sum of masses
  uint64_t before;                  // mass above depth k_at
  uint32_t kept, size;              // tokens kept, and in the set
  uint32_t counted, cut_blocks;     // blocks that have finished `count`, and `list`
  uint32_t drawn_blocks;            // and `draw`
  uint32_t listed;                  // number of listed z
  uint32_t k_at, k_rank;            // the k-th largest z is the k_rank-th at depth k_at; k_at =
                                    // kDepths: top-k keeps all
  uint32_t p_first, p_last;         // top-p's cut lies in these depths; none if p_last < p_first
  uint32_t cut;                     // smallest key that is kept
  uint32_t expert_top, expert_kth;  // keys of the expert, 0: none; for the `mix` after its search
};

struct Workspace {
  State* state;
  uint64_t *masses, *outcomes;
  float *z, *listed;
  uint32_t* counts;
};

FASTDECODE_HD inline size_t workspace_of_group(int64_t chunks) {
  const size_t ids = static_cast<size_t>(chunks) * kChunk;
  const size_t bytes = sizeof(State) + sizeof(uint64_t) * (kDepths + static_cast<size_t>(chunks)) +
                       sizeof(float) * 2 * ids + sizeof(uint32_t) * kDepths;
  return (bytes + 255) / 256 * 256;
}

FASTDECODE_DEVICE inline Workspace workspace_at(char* begin, int64_t chunks, int64_t group) {
  Workspace w;
  w.state = reinterpret_cast<State*>(begin + workspace_of_group(chunks) * group);
  w.masses = reinterpret_cast<uint64_t*>(w.state + 1);
  w.outcomes = w.masses + kDepths;
  w.z = reinterpret_cast<float*>(w.outcomes + chunks);
  w.listed = w.z + chunks * kChunk;
  w.counts = reinterpret_cast<uint32_t*>(w.listed + chunks * kChunk);
  return w;
}

}  // namespace
}  // namespace fastdecode
