// The kernels for small sets, and for advance without sample: what each block of a launch does.
#pragma once

#include "cuda/call.h"
#include "cuda/sample_small.h"

namespace fastdecode {
namespace {

// One block per group.
template <typename T>
struct SampleSmall {
  template <class Block>
  FASTDECODE_DEVICE static void run(Block& block, const Call& call) {
    const fastdecode_sample_args& a = call.sample;
    const int64_t group = block.index();
    const Choice choice = choice_of(call, group);
    if (choice.draws) {
      sample_small<T>(block, a, group_of(a, group, choice.step), set_of(a, choice.set),
                      call.capacity);
    }
    if (call.advances) block.once([&] { complete_group(call, group); });
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
