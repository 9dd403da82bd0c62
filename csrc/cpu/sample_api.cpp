// fastdecode_sample and fastdecode_sample_advance: they check the arguments and run the groups.

#include <atomic>

#include "core/check.h"
#include "core/grammar.h"
#include "cpu/advance.h"
#include "cpu/isa.h"
#include "cpu/sample.h"
#include "cpu/sample_check.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// With fewer logits a second thread costs more than it saves. Tests build with a smaller number.
#if !defined(FASTDECODE_LOGITS_TO_SHARE)
#define FASTDECODE_LOGITS_TO_SHARE (2 * 131072)
#endif
constexpr int64_t kLogitsToShare = FASTDECODE_LOGITS_TO_SHARE;

SampleGroup* sample_group() {
#if defined(FASTDECODE_X86)
  switch (cpu_isa()) {
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return sample_group_avx512;
    case Isa::kAvx2:
      return sample_group_avx2;
    case Isa::kPortable:
      break;
  }
#endif
  return sample_group_portable;
}

struct Call {
  SampleGroup* sample_group;
  const fastdecode_sample_args* args;
  const fastdecode_advance_args* advance;  // null: only sample
  int threads;                             // that share each group
  std::atomic<bool> out_of_memory;
};

void draw(Call& call, int64_t group, int64_t set, int64_t step) {
  const SampleScratch* scratch = thread_scratch(call.args->vocab);
  if (scratch == nullptr) {
    call.out_of_memory.store(true, std::memory_order_relaxed);
    return;
  }
  call.sample_group(*call.args, group, set, step, call.threads, *scratch);
}

// Draws a token for a group, or writes the answer of one that the grammar draws none for.
void run_advancing(Call& call, int64_t group) {
  const fastdecode_advance_args& advance = *call.advance;
  const Coming next = coming_if_running(advance, group);
  if (next.next != Next::kDrawn) return write_undrawn(*call.args, group, next);
  draw(call, group, next.value, advance.step[group]);
}

void run_group(void* context, int64_t group) {
  Call& call = *static_cast<Call*>(context);
  if (call.advance != nullptr) return run_advancing(call, group);
  const fastdecode_sample_args& args = *call.args;
  draw(call, group, args.set_index != nullptr ? args.set_index[group] : 0,
       args.step != nullptr ? args.step[group] : args.step_value);
}

int threads_for(const fastdecode_sample_args& args) {
  const double logits = static_cast<double>(args.groups * args.streams_per_group) *
                        static_cast<double>(args.vocab);  // an int64_t could overflow
  if (args.threads == 1 || logits < static_cast<double>(kLogitsToShare)) return 1;
  return thread_limit(args.threads);
}

// The threads share the groups or, where there are fewer groups than threads, each group.
fastdecode_result run(Call& call) {
  const fastdecode_sample_args& args = *call.args;
  const int threads = threads_for(args);
  if (args.groups >= threads) {
    parallel_for(args.groups, threads, run_group, &call);
  } else {
    call.threads = threads;
    for (int64_t group = 0; group < args.groups; ++group) run_group(&call, group);
  }
  if (!call.out_of_memory.load()) return FASTDECODE_OK;
  return fail(FASTDECODE_OUT_OF_MEMORY, "no memory to sample from %lld tokens",
              static_cast<long long>(args.vocab));
}

}  // namespace
}  // namespace fastdecode

extern "C" {

fastdecode_result fastdecode_sample_args_init_sized(fastdecode_sample_args* args, size_t size) {
  return fastdecode::set_up(args, size);
}

fastdecode_result fastdecode_sample(const fastdecode_sample_args* given) {
  using namespace fastdecode;
  Given<fastdecode_sample_args> args;
  CHECKED(args.take("args", given));
  CHECKED(check_sample_args(*args));
  resolve_strides(args);
  Call call = {sample_group(), &*args, nullptr, 1, {false}};
  return run(call);
}

fastdecode_result fastdecode_sample_advance(const fastdecode_sample_args* given_sample,
                                            const fastdecode_advance_args* given_advance) {
  using namespace fastdecode;
  Given<fastdecode_sample_args> sample;
  CHECKED(sample.take("sample", given_sample));
  CHECKED(check_sample_args(*sample));
  CHECKED(check_sample_of_advance(*sample));
  Given<fastdecode_advance_args> own;
  CHECKED(own.take("advance", given_advance));
  const fastdecode_advance_args advance = joined(*sample, *own);
  CHECKED(check_same_seen(*sample, advance));
  CHECKED(check_advance_args(advance, &*sample));
  resolve_strides(sample);
  Call call = {sample_group(), &*sample, &advance, 1, {false}};
  const fastdecode_result result = run(call);
  for (int64_t group = 0; result == FASTDECODE_OK && group < advance.groups; ++group) {
    advance_group(advance, group);
  }
  return result;
}

int32_t fastdecode_abi_version(void) {
  return FASTDECODE_ABI_VERSION;
}

const char* fastdecode_cpu_isa(void) {
  if (fastdecode::check_isa() != FASTDECODE_OK) return nullptr;
  return fastdecode::isa_name(fastdecode::cpu_isa());
}

}  // extern "C"
