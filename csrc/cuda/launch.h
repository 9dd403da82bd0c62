// The host's side of a call: it launches the kernels that its arguments need.
#pragma once

#include "cuda/check.h"
#include "cuda/device.h"

namespace fastdecode {
namespace {

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

template <typename T>
fastdecode_result launch_small(void* stream, const Call& call) {
  const int64_t groups = call.sample.groups, ids = call.capacity;
  if (ids <= kFew) return launch<SampleSmall<T>, 128>(stream, groups, ids, call);
  return launch<SampleSmall<T>, 512>(stream, groups, ids, call);
}

// The mix, and the search of the filters, if one may be on. `expert`: of contrast.
template <typename T>
fastdecode_result launch_mix(void* stream, Call& call, bool expert, bool search) {
  const int64_t blocks = call.sample.groups * call.chunks;
  call.expert = expert;
  CHECKED((launch<Mix<T>, kLargeThreads>(stream, blocks, 0, call)));
  if (!search) return FASTDECODE_OK;
  CHECKED((launch<Count, kLargeThreads>(stream, blocks, 0, call)));
  return launch<List, kLargeThreads>(stream, blocks, kChunk, call);
}

template <typename T>
fastdecode_result launch_large(void* stream, Call& call) {
  const fastdecode_sample_args& a = call.sample;
  const bool filters =
      a.top_k != nullptr || a.top_k_value > 0 || a.top_p != nullptr || a.top_p_value < 1.0f;
  if (a.contrast_k > 0) CHECKED(launch_mix<T>(stream, call, true, true));
  CHECKED(launch_mix<T>(stream, call, false, filters));
  return launch<Draw, kLargeThreads>(stream, a.groups * call.chunks, kChunk, call);
}

// Samples and, if `advance` is given, appends the tokens. The arguments have been checked.
inline fastdecode_result run_sample(void* stream, const fastdecode_sample_args& a,
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
    return call.chunks > 0 ? launch_large<T>(stream, call) : launch_small<T>(stream, call);
  });
}

inline fastdecode_result run_advance(void* stream, const fastdecode_advance_args* given) {
  Given<fastdecode_advance_args> args;
  CHECKED(args.take("args", given));
  CHECKED(check_cuda_advance(*args, false));
  if (args->groups == 0) return FASTDECODE_OK;
  const int64_t blocks = (args->groups + kAdvanceThreads - 1) / kAdvanceThreads;
  return launch<Advance, kAdvanceThreads>(stream, blocks, 0, *args);
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
