#include "cpu/decode_linear.h"

#include <algorithm>

#include "core/dtypes.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// A second thread helps from about ten microseconds of work on: so many bytes of weights or keys,
// at about 13 GB/s, or so many multiplications, at about 26 per nanosecond. Tests build with less.
#if !defined(FASTDECODE_BYTES_TO_SHARE)
#define FASTDECODE_BYTES_TO_SHARE (1 << 17)
#define FASTDECODE_WORK_TO_SHARE (1 << 18)
#endif
constexpr int64_t kBytesPerThread = FASTDECODE_BYTES_TO_SHARE;
constexpr int64_t kWorkPerThread = FASTDECODE_WORK_TO_SHARE;

// An item of work is about so many bytes of weights: whole tiles of features.
constexpr int64_t kBytesPerItem = 1 << 15;

struct Job {
  const DecodeKernels& kernels;
  const Linear* linears;
  int dtype;
  int64_t per_item;  // features
  LinearArgs args;   // those that all linear layers share
};

int64_t items_of(const Linear& linear, int64_t per_item) {
  return (linear.features + per_item - 1) / per_item;
}

void run_item(void* context, int64_t item) {
  const Job& job = *static_cast<Job*>(context);
  const Linear* linear = job.linears;
  LinearArgs args = job.args;
  for (; item >= items_of(*linear, job.per_item); ++linear) {
    item -= items_of(*linear, job.per_item);
    args.out += linear->features;
  }
  args.weight = linear->weight;
  args.bias = linear->bias;
  args.lo = item * job.per_item;
  args.hi = std::min(args.lo + job.per_item, linear->features);
  job.kernels.linear[job.dtype](args);
}

}  // namespace

const DecodeKernels& decode_kernels() {
#if defined(FASTDECODE_X86)
  switch (cpu_isa()) {
    case Isa::kAvx512Bf16:
      return decode_kernels_avx512bf16;
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

int useful_threads(double bytes, double work, int limit) {
  return bytes >= 2.0 * kBytesPerThread || work >= 2.0 * kWorkPerThread ? limit : 1;
}

bool run_linears(const Linear* linears, int count, int dtype, const float* x, int64_t rows,
                 int64_t k, float* out, int64_t out_stride, bool add, int threads) {
  const int64_t tile_bytes = std::max<int64_t>(kFeatures * k * size_of(dtype), 1);
  const int64_t per_item = kFeatures * std::max<int64_t>(kBytesPerItem / tile_bytes, 1);
  int64_t items = 0, features = 0;
  for (int i = 0; i < count; ++i) {
    items += items_of(linears[i], per_item);
    features += linears[i].features;
  }
  const DecodeKernels& kernels = decode_kernels();
  Job job = {kernels,
             linears,
             dtype,
             per_item,
             {nullptr, nullptr, x, rows, k, 0, 0, out, out_stride, add}};
  if (dtype == FASTDECODE_BFLOAT16 && kernels.round != nullptr) {
    static thread_local Memory memory;
    uint16_t* rounded = static_cast<uint16_t*>(memory.reserve(rows * k * 2));
    if (rounded == nullptr) return false;
    kernels.round(x, rows * k, rounded);
    job.args.x = rounded;
  }
  const double weights = static_cast<double>(features) * static_cast<double>(k);
  const double bytes = weights * static_cast<double>(size_of(dtype));
  parallel_for(items, useful_threads(bytes, weights * static_cast<double>(rows), threads), run_item,
               &job);
  return true;
}

}  // namespace fastdecode
