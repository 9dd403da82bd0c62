// The host's side of a call: it checks the arguments and launches kernels. These are templates over
// the class Device, which launches a kernel on a stream, see device.inc.
#pragma once

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/kernels.h"
#include "cuda/sample_cut.h"

namespace fastdecode {
namespace {

// Sets of up to so many tokens fit into a block's shared memory: 64 KiB. Tests build with 0.
#if !defined(FASTDECODE_CUDA_SMALL_SET)
#define FASTDECODE_CUDA_SMALL_SET 16384
#endif
constexpr int64_t kSmallSet = FASTDECODE_CUDA_SMALL_SET;

constexpr int64_t kFew = 1024;  // sets of up to so many tokens get a small block

inline int64_t largest_of(const fastdecode_sample_args& a, int64_t largest_set) {
  return largest_set > 0 && largest_set < a.vocab ? largest_set : a.vocab;
}

// How many blocks share a group; 0: its set fits into one block.
inline int64_t chunks_of(const fastdecode_sample_args& a, int64_t largest_set) {
  const int64_t largest = largest_of(a, largest_set);
  return largest <= kSmallSet ? 0 : (largest + kChunk - 1) / kChunk;
}

inline size_t workspace_of(const fastdecode_sample_args& a, int64_t largest_set) {
  const int64_t chunks = chunks_of(a, largest_set);
  return chunks == 0 ? 0 : workspace_of_group(chunks) * static_cast<size_t>(a.groups);
}

inline fastdecode_result check_sample(const fastdecode_sample_args& args, int64_t largest_set) {
  CHECKED(check_cuda_sample(args, largest_set));
  return check_cuda_blocks(args.groups, chunks_of(args, largest_set));
}

template <typename T, class To>
void list_kernels_of_type(To& list) {
  list.template add<SampleSmall<T>, 128, Call>(kFew);
  list.template add<SampleSmall<T>, 512, Call>(kSmallSet);
  list.template add<Mix<T>, kLargeThreads, Call>(0);
}

// Calls list.add<Kernel, kThreads, Call>(values) for each kernel that the functions below launch,
// with the most values that a launch of it asks for.
template <class To>
void list_kernels(To& list) {
  list_kernels_of_type<float>(list);
  list_kernels_of_type<BFloat16>(list);
  list_kernels_of_type<Float16>(list);
  list.template add<Count, kLargeThreads, Call>(0);
  list.template add<List, kLargeThreads, Call>(kChunk);
  list.template add<Draw, kLargeThreads, Call>(kChunk);
  list.template add<Advance, kAdvanceThreads, fastdecode_advance_args>(0);
}

// Launches one kernel after another, until CUDA refuses one.
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
  if (ids <= kFew) return device.template launch<SampleSmall<T>, 128>(groups, ids, call);
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

// Samples and, if `advance` is given, appends the tokens. The arguments have been checked.
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
  return with_type_of(a.dtype, [&](auto type) {
    using T = decltype(type);
    return call.chunks > 0 ? launch_large<T>(device, call) : launch_small<T>(device, call);
  });
}

template <class Device>
fastdecode_result run_advance(Device& device, const fastdecode_advance_args* given) {
  Given<fastdecode_advance_args> args;
  CHECKED(args.take("args", given));
  CHECKED(check_cuda_advance(*args, false));
  if (args->groups == 0) return FASTDECODE_OK;
  const int64_t blocks = (args->groups + kAdvanceThreads - 1) / kAdvanceThreads;
  return device.template launch<Advance, kAdvanceThreads>(blocks, 0, *args);
}

// The arguments of a sample_advance's advance: those given, with those that it takes from the
// sample's. The sample's have been checked.
inline fastdecode_result join(const fastdecode_sample_args& sample,
                              const fastdecode_advance_args* given, fastdecode_advance_args* to) {
  CHECKED(check_sample_of_advance(sample));
  Given<fastdecode_advance_args> own;
  CHECKED(own.take("advance", given));
  *to = joined(sample, *own);
  CHECKED(check_cuda_advance(*to, true));
  return check_same_seen(sample, *to);
}

}  // namespace
}  // namespace fastdecode
