#include "cpu/decode_linear.h"

#include <algorithm>
#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

// Another thread pays from about ten microseconds of work on: so many bytes of weights or keys, at
// about 13 GB/s, or so many multiplications, at about 26 per nanosecond. Tests build with less.
#if !defined(FASTDECODE_BYTES_TO_SHARE)
#define FASTDECODE_BYTES_TO_SHARE (1 << 17)
#define FASTDECODE_WORK_TO_SHARE (1 << 18)
#endif
constexpr int64_t kBytesPerThread = FASTDECODE_BYTES_TO_SHARE;
constexpr int64_t kWorkPerThread = FASTDECODE_WORK_TO_SHARE;

constexpr int64_t kFeaturesPerItem = 32;

struct Job {
  const DecodeKernels& kernels;
  const Linear* linears;
  int dtype;
  LinearArgs args;  // but for what is a linear layer's own
};

int64_t items_of(const Linear& linear) {
  return (linear.features + kFeaturesPerItem - 1) / kFeaturesPerItem;
}

void run_item(void* context, int64_t item) {
  const Job& job = *static_cast<Job*>(context);
  const Linear* linear = job.linears;
  LinearArgs args = job.args;
  for (; item >= items_of(*linear); ++linear) {
    item -= items_of(*linear);
    args.out += linear->features;
  }
  args.weight = linear->weight;
  args.bias = linear->bias;
  args.lo = item * kFeaturesPerItem;
  args.hi = std::min(args.lo + kFeaturesPerItem, linear->features);
  job.kernels.linear[job.dtype](args);
}

}  // namespace

Memory::~Memory() {
  std::free(bytes_);
}

void* Memory::reserve(int64_t bytes) {
  if (bytes_ != nullptr && bytes <= size_) return bytes_;
  bytes = std::max<int64_t>((bytes + 63) / 64 * 64, 64);
  void* more = std::aligned_alloc(64, static_cast<size_t>(bytes));
  if (more == nullptr) return nullptr;
  std::free(bytes_);
  bytes_ = more;
  size_ = bytes;
  return more;
}

int64_t size_of(int dtype) {
  return dtype == FASTDECODE_FLOAT32 ? 4 : 2;
}

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

int useful_threads(int64_t bytes, int64_t work, int limit) {
  return std::max(bytes / kBytesPerThread, work / kWorkPerThread) > 1 ? limit : 1;
}

bool run_linears(const Linear* linears, int count, int dtype, const float* x, int64_t rows,
                 int64_t k, float* out, int64_t out_stride, bool add, int threads) {
  int64_t items = 0, features = 0;
  for (int i = 0; i < count; ++i) {
    items += items_of(linears[i]);
    features += linears[i].features;
  }
  const DecodeKernels& kernels = decode_kernels();
  Job job = {kernels, linears, dtype, {nullptr, nullptr, x, rows, k, 0, 0, out, out_stride, add}};
  if (dtype == FASTDECODE_BFLOAT16 && kernels.round != nullptr) {
    static thread_local Memory memory;
    uint16_t* rounded = static_cast<uint16_t*>(memory.reserve(rows * k * 2));
    if (rounded == nullptr) return false;
    kernels.round(x, rows * k, rounded);
    job.args.x = rounded;
  }
  const int64_t bytes = features * k * size_of(dtype);
  parallel_for(items, useful_threads(bytes, features * k * rows, threads), run_item, &job);
  return true;
}

}  // namespace fastdecode
