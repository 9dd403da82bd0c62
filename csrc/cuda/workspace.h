// The workspace of a call whose sets are shared out to several blocks: for each group, with
// C chunks of kChunk positions of its set each,
//
//   State                 of the group; the first chunk's block of `mix` sets it up
//   uint64_t (kDepths)    mass of each depth below the top
//   uint64_t (C)          outcome of each chunk: the order key of its largest z, 0 if it has none,
//   or
//                         why the group is not drawn for
//   float    (C * kChunk) z by position; -inf for what is not kept
//   float    (C * kChunk) listed z, of the depths in which a cut lies
//   uint32_t (kDepths)    ids at each depth
#pragma once

#include "cuda/block.h"
#include "cuda/result.h"

namespace fastdecode {
namespace {

// 65,536 ids are shared out to 64 blocks. Tests build with fewer.
#if !defined(FASTDECODE_CUDA_CHUNK)
#define FASTDECODE_CUDA_CHUNK 1024
#endif
constexpr int kChunk = FASTDECODE_CUDA_CHUNK;
constexpr int kDepths = 1024;  // 128 for each doubling of top - z + 2, up to 510
static_assert(2 * kDepths <= kBins, "a block counts ids and masses of its own in shared memory");

// Outcomes above every key; the larger one counts.
constexpr uint64_t kEmpty = kWrong + 1, kIdle = kWrong + 2;

struct State {
  uint64_t best, mass;           // of what is kept: the largest rank, and the sum
  uint64_t before;               // mass above depth k_at
  uint32_t kept, size;           // ids
  uint32_t counted, cut_blocks;  // blocks that are through with counting, and with listing
  uint32_t drawn_blocks;
  uint32_t listed;
  uint32_t k_at, k_rank;  // the k-th largest is the k_rank-th at its depth; kDepths: all are kept
  uint32_t p_first, p_last;  // depths between which top-p's cut lies; none if p_last < p_first
  uint32_t cut;              // least key that is kept
  uint32_t expert_top, expert_kth;  // keys; 0: none. They outlive the search for the expert
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
