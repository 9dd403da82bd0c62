// What a launch of the sampler's kernels is given, and which draw it is for a group.
#pragma once

#include "cuda/advance.h"
#include "cuda/group.h"

namespace fastdecode {
namespace {

struct Call {
  fastdecode_sample_args sample;
  fastdecode_advance_args advance;
  bool advances;
  int32_t capacity;  // ids of the largest set
  // Of sets that several blocks share, see workspace.h
  char* workspace;
  int32_t chunks;
  bool expert;  // the first stream alone, for contrast
};

struct Choice {
  bool draws;
  int32_t set;
  int64_t step;
};

// What a group is to be drawn from, and the number of the token.
FASTDECODE_DEVICE inline Choice choice_of(const Call& call, int64_t group) {
  const fastdecode_sample_args& a = call.sample;
  if (!call.advances) {
    return {true, value_of<int32_t>(a.set_index, 0, group), value_of(a.step, a.step_value, group)};
  }
  if (call.advance.finished[group] != FASTDECODE_RUNNING) return {false, -1, 0};
  const Coming next = coming(call.advance, group);
  const bool draws = next.next == Next::kDrawn;
  return {draws, draws ? next.value : -1, call.advance.step[group]};
}

}  // namespace
}  // namespace fastdecode
