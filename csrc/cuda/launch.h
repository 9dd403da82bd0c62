// The host's side of a call: checks, and which kernels are launched. A template over Device, which
// launches a kernel on a stream or, in a test, runs its blocks one after another.
#pragma once

#include "cpu/error.h"
#include "cuda/check.h"
#include "cuda/kernels.h"

namespace fastdecode {
namespace {

constexpr int64_t kSmallSet = 16384;  // ids of which a block holds all: 64 KiB

inline int64_t largest_of(const fastdecode_sample_args& a, int64_t largest_set) {
  return largest_set > 0 && largest_set < a.vocab ? largest_set : a.vocab;
}

inline bool is_small(const fastdecode_sample_args& a, int64_t largest_set) {
  return largest_of(a, largest_set) <= kSmallSet;
}

inline size_t workspace_of(const fastdecode_sample_args& a, int64_t largest_set) {
  return is_small(a, largest_set) ? 0 : 256;
}

template <typename T, class Device>
fastdecode_result launch_small(Device& device, const SmallCall& call) {
  const int64_t groups = call.sample.groups, ids = call.capacity;
  if (ids <= 1024) return device.template launch<SampleSmall<T>, 128>(groups, ids, call);
  return device.template launch<SampleSmall<T>, 512>(groups, ids, call);
}

// Draws for checked arguments and, if `advance` is given, appends.
template <typename T, class Device>
fastdecode_result launch_sample(Device& device, const fastdecode_sample_args& a,
                                const fastdecode_advance_args* advance, int64_t largest_set) {
  SmallCall call = {};
  call.sample = a;
  call.advances = advance != nullptr;
  if (advance != nullptr) call.advance = *advance;
  call.capacity = static_cast<int32_t>(largest_of(a, largest_set));
  return launch_small<T>(device, call);
}

template <class Device>
fastdecode_result run_sample(Device& device, const fastdecode_sample_args& a,
                             const fastdecode_advance_args* advance, int64_t largest_set,
                             void* workspace) {
  (void)workspace;
  if (a.groups == 0) return FASTDECODE_OK;
  if (!is_small(a, largest_set)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "largest_set: sets of more than 16384 ids cannot be drawn from yet");
  }
  if (a.dtype == FASTDECODE_FLOAT32) {
    return launch_sample<float>(device, a, advance, largest_set);
  }
  if (a.dtype == FASTDECODE_BFLOAT16) {
    return launch_sample<BFloat16>(device, a, advance, largest_set);
  }
  return launch_sample<Float16>(device, a, advance, largest_set);
}

template <class Device>
fastdecode_result run_advance(Device& device, const fastdecode_advance_args* given) {
  const fastdecode_result checked = check_cuda_advance(given, false);
  if (checked != FASTDECODE_OK || given->groups == 0) return checked;
  const int64_t blocks = (given->groups + kAdvanceThreads - 1) / kAdvanceThreads;
  return device.template launch<Advance, kAdvanceThreads>(blocks, 0, *given);
}

// The advance of a sample_advance, with what it takes from the sample.
inline fastdecode_result join(const fastdecode_sample_args* sample,
                              const fastdecode_advance_args* given, fastdecode_advance_args* to) {
  if (sample->set_index != nullptr || sample->step != nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "sample->set_index and sample->step must be NULL: the grammar and the steps of the "
                "groups take their place");
  }
  if (given != nullptr) {
    *to = *given;
    to->groups = sample->groups;
    to->streams_per_group = sample->streams_per_group;
    to->streams = sample->streams;
    to->rows = sample->rows;
    to->vocab = sample->vocab;
    to->token = sample->token;
  }
  const fastdecode_result checked = check_cuda_advance(given != nullptr ? to : nullptr, true);
  if (checked != FASTDECODE_OK) return checked;
  if (sample->seen != nullptr && sample->seen != to->seen) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "sample->seen must be NULL or advance->seen");
  }
  return FASTDECODE_OK;
}

}  // namespace
}  // namespace fastdecode
