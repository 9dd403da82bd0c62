#include "cpu/decode_linear.h"

#include <algorithm>

#include "core/weights.h"
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
  const void* forms[3];  // of x, by form_of
  LinearArgs args;       // those that all linear layers share
};

// Which form of x the kernels of a type of weights take.
enum Form { kFloat32, kRounded, kInt8 };

Form form_of(int type, const DecodeKernels& kernels) {
  if (kWeightTypes[type].small) return kInt8;
  return type == FASTDECODE_WEIGHTS_BFLOAT16 && kernels.round != nullptr ? kRounded : kFloat32;
}

// Features in an item of work.
int64_t per_item(const Linear& linear, int64_t k, int64_t rows) {
  const int64_t many = rows < kManyRows ? kFeatures : kBlockFeatures;
  const int64_t tile = in_panels(linear.how.type) ? 2 * kPanelFeatures : many;
  const int64_t bytes = std::max<int64_t>(tile * bytes_of_feature(linear.how.type, k), 1);
  return tile * std::max<int64_t>(kBytesPerItem / bytes, 1);
}

int64_t items_of(const Linear& linear, int64_t k, int64_t rows) {
  const int64_t features = per_item(linear, k, rows);
  return (linear.how.first + linear.features + features - 1) / features;
}

void run_item(void* context, int64_t item) {
  const Job& job = *static_cast<Job*>(context);
  const Linear* linear = job.linears;
  LinearArgs args = job.args;
  for (; item >= items_of(*linear, args.k, args.rows); ++linear) {
    item -= items_of(*linear, args.k, args.rows);
    args.out += linear->features;
  }
  const int64_t features = per_item(*linear, args.k, args.rows);
  args.weight = linear->weight;
  args.how = linear->how;
  args.bias = linear->bias;
  args.x = job.forms[form_of(linear->how.type, job.kernels)];
  args.lo = item * features;
  args.hi = std::min(args.lo + features, linear->how.first + linear->features);
  job.kernels.linear[linear->how.type](args);
}

// x (rows, k) as bfloat16; null if there is no memory.
const void* rounded(const DecodeKernels& kernels, const float* x, int64_t rows, int64_t k) {
  static thread_local Memory memory;
  uint16_t* out = static_cast<uint16_t*>(memory.reserve(rows * k * 2));
  if (out != nullptr) kernels.round(x, rows * k, out);
  return out;
}

struct Rounding {
  const DecodeKernels& kernels;
  const float* x;
  int64_t k;
  const RoundedRows& out;
};

// x (rows, k) as int8, in `out`; null if there is no memory.
const void* as_int8(const DecodeKernels& kernels, const float* x, int64_t rows, int64_t k,
                    int threads, RoundedRows* out) {
  static thread_local Memory memory;
  const int64_t blocks = rows * ((k + kBlock - 1) / kBlock);
  const int64_t sums = kBlock / kUnit;  // of a block
  char* at = static_cast<char*>(
      memory.reserve(blocks * (kBlock + int64_t{sizeof(float)} + sums * int64_t{sizeof(int32_t)})));
  if (at == nullptr) return nullptr;
  out->blocks = blocks / rows;
  out->values = reinterpret_cast<int8_t*>(at);
  out->scale = reinterpret_cast<float*>(at + blocks * kBlock);
  out->sums = reinterpret_cast<int32_t*>(out->scale + blocks);
  Rounding rounding = {kernels, x, k, *out};
  const double work = static_cast<double>(rows) * static_cast<double>(k) * 8.0;
  parallel_for(
      rows, useful_threads(0.0, work, threads),
      [](void* of, int64_t row) {
        const Rounding& r = *static_cast<Rounding*>(of);
        r.kernels.round_to_int8(r.x + row * r.k, r.k, r.out, row);
      },
      &rounding);
  return out;
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

bool run_linears(const Linear* linears, int count, const float* x, int64_t rows, int64_t k,
                 float* out, int64_t out_stride, bool add, int threads) {
  const DecodeKernels& kernels = decode_kernels();
  Job job = {kernels, linears, {x, nullptr, nullptr}, {}};
  RoundedRows in_bytes = {};
  int64_t items = 0;
  double bytes = 0.0, work = 0.0;
  for (int i = 0; i < count; ++i) {
    const int type = linears[i].how.type;
    const Form form = form_of(type, kernels);
    if (job.forms[form] == nullptr) {
      job.forms[form] = form == kRounded ? rounded(kernels, x, rows, k)
                                         : as_int8(kernels, x, rows, k, threads, &in_bytes);
      if (job.forms[form] == nullptr) return false;
    }
    items += items_of(linears[i], k, rows);
    const double features = static_cast<double>(linears[i].features);
    bytes += features * static_cast<double>(bytes_of_feature(type, k));
    work += features * static_cast<double>(k) * static_cast<double>(rows);
  }
  job.args.rows = rows;
  job.args.k = k;
  job.args.out = out;
  job.args.out_stride = out_stride;
  job.args.add = add;
  parallel_for(items, useful_threads(bytes, work, threads), run_item, &job);
  return true;
}

}  // namespace fastdecode
