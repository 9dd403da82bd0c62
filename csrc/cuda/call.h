// The arguments of a launch of the sampler's kernels, and what they mean for one group.
#pragma once

#include "core/grammar.h"
#include "cuda/group.h"

namespace fastdecode {
namespace {

struct Call {
  fastdecode_sample_args sample;
  fastdecode_advance_args advance;
  bool advances;     // whether it is a sample_advance
  int32_t capacity;  // tokens of the largest set
  // For sets that several blocks share, see workspace.h
  char* workspace;
  int32_t chunks;
  bool expert;  // read only the first stream, for contrast
};

struct Choice {
  bool draws;  // whether a token is drawn
  int32_t set;
  int64_t step;
};

// Which set a group's token is drawn from, and the token's number in its sequence.
FASTDECODE_DEVICE inline Choice choice_of(const Call& call, int64_t group) {
  const fastdecode_sample_args& a = call.sample;
  if (!call.advances) {
    return {true, value_of<int32_t>(a.set_index, 0, group), value_of(a.step, a.step_value, group)};
  }
  const Coming next = coming_if_running(call.advance, group);
  const bool draws = next.next == Next::kDrawn;
  return {draws, draws ? next.value : -1, call.advance.step[group]};
}

// Of sample_advance: writes the answer of a group for which no token was drawn, and appends the
// token, if the group got one.
FASTDECODE_DEVICE inline void complete_group(const Call& call, int64_t group) {
  const fastdecode_advance_args& a = call.advance;
  const bool running = a.finished[group] == FASTDECODE_RUNNING;
  const Coming next = coming_if_running(a, group);
  if (next.next != Next::kDrawn) write_undrawn(call.sample, group, next);
  if (running) a.finished[group] = advanced(a, group, next, call.sample.token[group]);
}

}  // namespace
}  // namespace fastdecode
