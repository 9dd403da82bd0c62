// The kernels of small sets, and of advance alone: what each block does of a launch.
#pragma once

#include "cuda/advance.h"
#include "cuda/sample_small.h"

namespace fastdecode {
namespace {

struct SmallCall {
  fastdecode_sample_args sample;
  fastdecode_advance_args advance;
  bool advances;
  int32_t capacity;  // ids that a block holds
};

struct Choice {
  bool draws;
  int32_t set;
  int64_t step;
};

// What a group is to be drawn from, and the number of the token.
FASTDECODE_DEVICE inline Choice choice_of(const fastdecode_sample_args& a,
                                          const fastdecode_advance_args* advance, int64_t group) {
  if (advance == nullptr) {
    return {true, value_of<int32_t>(a.set_index, 0, group), value_of(a.step, a.step_value, group)};
  }
  if (advance->finished[group] != FASTDECODE_RUNNING) return {false, -1, 0};
  const Coming next = coming(*advance, group);
  const bool draws = next.next == Next::kDrawn;
  return {draws, draws ? next.value : -1, advance->step[group]};
}

// One block per group.
template <typename T>
struct SampleSmall {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const SmallCall& call) {
    const fastdecode_sample_args& a = call.sample;
    const int64_t group = block.index();
    const Choice choice = choice_of(a, call.advances ? &call.advance : nullptr, group);
    if (choice.draws) {
      sample_small<T>(block, a, group_of(a, group, choice.step), set_of(a, choice.set),
                      call.capacity);
    }
    if (call.advances) block.once([&] { complete_group(a, call.advance, group); });
  }
};

constexpr int kAdvanceThreads = 128;

// One thread per group.
struct Advance {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const fastdecode_advance_args& a) {
    const int64_t first = block.index() * kAdvanceThreads;
    const int64_t left = a.groups - first;
    const int n = left < kAdvanceThreads ? static_cast<int>(left) : kAdvanceThreads;
    block.each(n, [&](int i) { advance_group(a, first + i); });
  }
};

}  // namespace
}  // namespace fastdecode
