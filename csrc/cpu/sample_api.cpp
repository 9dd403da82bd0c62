// fastdecode_sample and fastdecode_sample_advance: check the arguments, and run the groups.

#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu/advance.h"
#include "cpu/error.h"
#include "cpu/isa.h"
#include "cpu/sample.h"
#include "cpu/sample_check.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// Below this many logits a second thread costs more than it saves. Tests build with less.
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
  const fastdecode_advance_args* advance;  // null: only a draw is wanted
  int threads;                             // for each group
  std::atomic<bool> out_of_memory;
};

void write(const fastdecode_sample_args& args, int64_t group, int64_t token,
           fastdecode_status status) {
  args.token[group] = token;
  args.logprob[group] = token < 0 ? -HUGE_VALF : 0.0f;
  args.kept[group] = token < 0 ? 0 : 1;
  args.status[group] = status;
}

void draw(Call& call, int64_t group, int64_t set, int64_t step) {
  const SampleScratch* scratch = thread_scratch(call.args->vocab);
  if (scratch == nullptr) {
    call.out_of_memory.store(true, std::memory_order_relaxed);
    return;
  }
  call.sample_group(*call.args, group, set, step, call.threads, *scratch);
}

// What the grammar wants of a group: a draw, or what there is to say without one.
void run_advancing(Call& call, int64_t group) {
  const fastdecode_sample_args& args = *call.args;
  const fastdecode_advance_args& advance = *call.advance;
  Coming next = {Next::kNothing, 0};
  if (advance.finished[group] == FASTDECODE_RUNNING) next = coming(advance, group);
  switch (next.next) {
    case Next::kNothing:
      return write(args, group, -1, FASTDECODE_STATUS_FINISHED);
    case Next::kForced:
      return write(args, group, next.value, FASTDECODE_STATUS_OK);
    case Next::kDrawn:
      return draw(call, group, next.value, advance.step[group]);
  }
}

void run_group(void* context, int64_t group) {
  Call& call = *static_cast<Call*>(context);
  if (call.advance != nullptr) return run_advancing(call, group);
  const fastdecode_sample_args& args = *call.args;
  draw(call, group, args.set_index != nullptr ? args.set_index[group] : 0,
       args.step != nullptr ? args.step[group] : args.step_value);
}

int threads_for(const fastdecode_sample_args& args) {
  const int64_t logits = args.groups * args.streams_per_group * args.vocab;
  if (args.threads == 1 || logits < kLogitsToShare) return 1;
  return args.threads > 0 ? args.threads : processors();
}

// Groups are shared out to the threads; where there are fewer groups than threads, each group is.
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
  return fail(FASTDECODE_OUT_OF_MEMORY, "no memory for the scratch of %lld ids",
              static_cast<long long>(args.vocab));
}

}  // namespace
}  // namespace fastdecode

extern "C" {

void fastdecode_sample_args_init(fastdecode_sample_args* args) {
  std::memset(args, 0, sizeof *args);
  args->size = sizeof *args;
  args->threads = 1;
  args->streams_per_group = 1;
  args->temperature_value = 1.0f;
  args->top_p_value = 1.0f;
  args->penalty_value = 1.0f;
}

fastdecode_result fastdecode_sample(const fastdecode_sample_args* given) {
  using namespace fastdecode;
  const fastdecode_result checked = check_sample_args(given);
  if (checked != FASTDECODE_OK) return checked;
  Call call = {sample_group(), given, nullptr, 1, {false}};
  return run(call);
}

fastdecode_result fastdecode_sample_advance(const fastdecode_sample_args* sample,
                                            const fastdecode_advance_args* given) {
  using namespace fastdecode;
  fastdecode_result checked = check_sample_args(sample);
  if (checked != FASTDECODE_OK) return checked;
  if (sample->set_index != nullptr || sample->step != nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "sample->set_index and sample->step must be NULL: the grammar and the steps of the "
                "groups take their place");
  }
  checked = check_advance_size(given);
  if (checked != FASTDECODE_OK) return checked;
  fastdecode_advance_args advance = *given;
  advance.groups = sample->groups;
  advance.streams_per_group = sample->streams_per_group;
  advance.streams = sample->streams;
  advance.rows = sample->rows;
  advance.vocab = sample->vocab;
  advance.token = sample->token;
  if (sample->seen != nullptr && sample->seen != advance.seen) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "sample->seen must be NULL or advance->seen");
  }
  checked = check_advance_args(advance, sample->sets > 0 ? sample->sets : 1);
  if (checked != FASTDECODE_OK) return checked;
  Call call = {sample_group(), sample, &advance, 1, {false}};
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
