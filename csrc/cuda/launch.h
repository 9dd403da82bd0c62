// The host's side of a call: checks, and which kernels are launched. A template over Device, which
// launches a kernel on a stream or, in a test, runs its blocks one after another.
#pragma once

#include "cpu/error.h"
#include "cuda/check.h"
#include "cuda/kernels.h"
#include "cuda/sample_cut.h"

namespace fastdecode {
namespace {

// Ids of which a block holds all: 64 KiB. Tests build with none.
#if !defined(FASTDECODE_CUDA_SMALL_SET)
#define FASTDECODE_CUDA_SMALL_SET 16384
#endif
constexpr int64_t kSmallSet = FASTDECODE_CUDA_SMALL_SET;

inline int64_t largest_of(const fastdecode_sample_args& a, int64_t largest_set) {
  return largest_set > 0 && largest_set < a.vocab ? largest_set : a.vocab;
}

// Blocks that share a group; 0: one block holds it.
inline int64_t chunks_of(const fastdecode_sample_args& a, int64_t largest_set) {
  const int64_t largest = largest_of(a, largest_set);
  return largest <= kSmallSet ? 0 : (largest + kChunk - 1) / kChunk;
}

inline size_t workspace_of(const fastdecode_sample_args& a, int64_t largest_set) {
  const int64_t chunks = chunks_of(a, largest_set);
  return chunks == 0 ? 0 : workspace_of_group(chunks) * static_cast<size_t>(a.groups);
}

inline fastdecode_result check_sample(const fastdecode_sample_args* args, int64_t largest_set) {
  const fastdecode_result checked = check_cuda_sample(args, largest_set);
  if (checked != FASTDECODE_OK) return checked;
  return check_cuda_blocks(args->groups, chunks_of(*args, largest_set));
}

// Launches one kernel after another; after one that CUDA refuses, none.
template <class Device>
class Launches {
 public:
  explicit Launches(Device& device) : device_(device) {}

  template <class Kernel, int kThreads>
  void add(int64_t blocks, int64_t values, const Call& call) {
    if (result_ != FASTDECODE_OK) return;
    result_ = device_.template launch<Kernel, kThreads>(blocks, values, call);
  }
  fastdecode_result result() const { return result_; }

 private:
  Device& device_;
  fastdecode_result result_ = FASTDECODE_OK;
};

template <typename T, class Device>
fastdecode_result launch_small(Device& device, const Call& call) {
  const int64_t groups = call.sample.groups, ids = call.capacity;
  if (ids <= 1024) return device.template launch<SampleSmall<T>, 128>(groups, ids, call);
  return device.template launch<SampleSmall<T>, 512>(groups, ids, call);
}

template <typename T, class Device>
fastdecode_result launch_large(Device& device, Call& call) {
  const fastdecode_sample_args& a = call.sample;
  const int64_t blocks = a.groups * call.chunks;
  Launches<Device> launches(device);
  const auto mix = [&](bool expert, bool search) {
    call.expert = expert;
    launches.template add<Mix<T>, kLargeThreads>(blocks, 0, call);
    if (!search) return;
    launches.template add<Count, kLargeThreads>(blocks, 0, call);
    launches.template add<List, kLargeThreads>(blocks, kChunk, call);
  };
  if (a.contrast_k > 0) mix(true, true);
  mix(false, a.top_k != nullptr || a.top_k_value > 0 || a.top_p != nullptr || a.top_p_value < 1.0f);
  launches.template add<Draw, kLargeThreads>(blocks, kChunk, call);
  return launches.result();
}

// Draws for checked arguments and, if `advance` is given, appends.
template <class Device>
fastdecode_result run_sample(Device& device, const fastdecode_sample_args& a,
                             const fastdecode_advance_args* advance, int64_t largest_set,
                             void* workspace) {
  if (a.groups == 0) return FASTDECODE_OK;
  Call call = {};
  call.sample = a;
  call.advances = advance != nullptr;
  if (advance != nullptr) call.advance = *advance;
  call.capacity = static_cast<int32_t>(largest_of(a, largest_set));
  call.workspace = static_cast<char*>(workspace);
  call.chunks = static_cast<int32_t>(chunks_of(a, largest_set));
  const bool large = call.chunks > 0;
  if (a.dtype == FASTDECODE_FLOAT32) {
    return large ? launch_large<float>(device, call) : launch_small<float>(device, call);
  }
  if (a.dtype == FASTDECODE_BFLOAT16) {
    return large ? launch_large<BFloat16>(device, call) : launch_small<BFloat16>(device, call);
  }
  return large ? launch_large<Float16>(device, call) : launch_small<Float16>(device, call);
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
