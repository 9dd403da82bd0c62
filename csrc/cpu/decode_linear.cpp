#include "cpu/decode_linear.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// Another thread pays from about ten microseconds of work on.
constexpr int64_t kBytesPerThread = 1 << 17;  // of weights or keys, at about 13 GB/s
constexpr int64_t kWorkPerThread = 1 << 18;   // multiplications, at about 26 per nanosecond

constexpr int64_t kFeaturesPerItem = 32;

struct Job {
  const DecodeKernels& kernels;
  const Linear* linears;
  const float* x;
  int64_t rows, k;
  float* out;
  int64_t out_stride;
  bool add;
};

int64_t items_of(const Linear& linear) {
  return (linear.features + kFeaturesPerItem - 1) / kFeaturesPerItem;
}

void run_item(void* context, int64_t item) {
  const Job& job = *static_cast<Job*>(context);
  const Linear* linear = job.linears;
  float* out = job.out;
  for (; item >= items_of(*linear); ++linear) {
    item -= items_of(*linear);
    out += linear->features;
  }
  const int64_t lo = item * kFeaturesPerItem;
  const int64_t hi = std::min(lo + kFeaturesPerItem, linear->features);
  job.kernels.linear(linear->weight, linear->bias, job.x, job.k, job.rows, job.k, lo, hi, out,
                     job.out_stride, job.add);
}

}  // namespace

const DecodeKernels& decode_kernels() {
#if defined(FASTDECODE_X86)
  switch (cpu_isa()) {
    case Isa::kAvx512:
      return decode_kernels_avx512;
    case Isa::kAvx2:
      return decode_kernels_avx2;
    case Isa::kPortable:
      break;
  }
#endif
  return decode_kernels_portable;
}

int useful_threads(int64_t bytes, int64_t work, int limit) {
  return std::max(bytes / kBytesPerThread, work / kWorkPerThread) > 1 ? limit : 1;
}

void run_linears(const Linear* linears, int count, const float* x, int64_t rows, int64_t k,
                 float* out, int64_t out_stride, bool add, int threads) {
  int64_t items = 0, features = 0;
  for (int i = 0; i < count; ++i) {
    items += items_of(linears[i]);
    features += linears[i].features;
  }
  Job job = {decode_kernels(), linears, x, rows, k, out, out_stride, add};
  const int64_t bytes = features * k * int64_t{sizeof(float)};
  parallel_for(items, useful_threads(bytes, features * k * rows, threads), run_item, &job);
}

}  // namespace fastdecode
