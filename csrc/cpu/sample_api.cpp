// fastdecode_sample: copies the arguments over defaults, checks them, and runs the groups.

#include <atomic>
#include <cstring>
#include <thread>

#include "cpu/error.h"
#include "cpu/isa.h"
#include "cpu/sample.h"
#include "cpu/sample_check.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// Below this many logits per thread, waking it costs more than it saves.
constexpr int64_t kLogitsPerThread = 16384;

SampleGroup* sample_group() {
#if defined(FASTDECODE_X86)
  switch (cpu_isa()) {
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
  int threads;  // for each group
  std::atomic<bool> out_of_memory;
};

void run_group(void* context, int64_t group) {
  Call& call = *static_cast<Call*>(context);
  const SampleScratch* scratch = thread_scratch(call.args->vocab);
  if (scratch == nullptr) {
    call.out_of_memory.store(true, std::memory_order_relaxed);
    return;
  }
  call.sample_group(*call.args, group, call.threads, *scratch);
}

int threads_for(const fastdecode_sample_args& args) {
  if (args.threads == 1) return 1;
  const int64_t processors = std::thread::hardware_concurrency();
  const int64_t limit = args.threads > 0 ? args.threads : (processors > 0 ? processors : 1);
  const int64_t useful = args.groups * args.streams_per_group * args.vocab / kLogitsPerThread;
  return static_cast<int>(useful < 1 ? 1 : useful < limit ? useful : limit);
}

// Groups are shared out to the threads; where there are fewer groups than threads, each group is.
void run(const fastdecode_sample_args& args, Call& call) {
  const int threads = threads_for(args);
  if (args.groups >= threads) {
    parallel_for(args.groups, threads, run_group, &call);
    return;
  }
  call.threads = threads;
  for (int64_t group = 0; group < args.groups; ++group) run_group(&call, group);
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
  if (given == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "args = NULL: must point to the arguments");
  }
  // This is the first layout. A later one is larger, and takes the defaults for what is missing.
  if (given->size != sizeof(fastdecode_sample_args)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "args->size = %zu: this library expects %zu; call fastdecode_sample_args_init",
                given->size, sizeof(fastdecode_sample_args));
  }
  if (check_isa() != FASTDECODE_OK) return FASTDECODE_INVALID_ARGUMENT;
  const fastdecode_result checked = check_sample_args(*given);
  if (checked != FASTDECODE_OK) return checked;
  Call call = {sample_group(), given, 1, {false}};
  run(*given, call);
  if (call.out_of_memory.load()) {
    return fail(FASTDECODE_OUT_OF_MEMORY, "no memory for the scratch of %lld ids",
                static_cast<long long>(given->vocab));
  }
  return FASTDECODE_OK;
}

int32_t fastdecode_abi_version(void) {
  return FASTDECODE_ABI_VERSION;
}

const char* fastdecode_cpu_isa(void) {
  if (fastdecode::check_isa() != FASTDECODE_OK) return nullptr;
  return fastdecode::isa_name(fastdecode::cpu_isa());
}

}  // extern "C"
