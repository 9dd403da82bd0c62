// fastdecode_decode_step: the order of a step's parts.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "cpu/decode_check.h"
#include "cpu/decode_kernels.h"
#include "cpu/decode_linear.h"
#include "cpu/error.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

// What the calling thread keeps from step to step, freed with it.
struct Memory {
  float* floats = nullptr;
  int64_t size = 0;

  ~Memory() { std::free(floats); }

  bool reserve(int64_t wanted) {
    if (wanted <= size) return true;
    const size_t bytes = (static_cast<size_t>(wanted) * sizeof(float) + 63) / 64 * 64;
    void* more = std::aligned_alloc(64, bytes);
    if (more == nullptr) return false;
    std::free(floats);
    floats = static_cast<float*>(more);
    size = wanted;
    return true;
  }
};

int64_t rounded(int64_t n) {
  return (n + 15) / 16 * 16;
}

class Runner {
 public:
  Runner(const fastdecode_decode_args& step, const DecodeKernels& kernels)
      : step_(step),
        kernels_(kernels),
        queries_(step.heads * step.head_dim),
        kv_(step.kv_heads * step.head_dim) {
    for (int64_t r = 0; r < step.rows; ++r) longest_ = std::max(longest_, step.lengths[r]);
    threads_ = step.threads > 0 ? step.threads : processors();
  }

  bool reserve() {
    const fastdecode_decode_args& s = step_;
    const int64_t attend_scratch = rounded(s.head_dim + longest_ + 1);
    const int64_t sizes[] = {
        rounded(s.rows * s.hidden), rounded(s.rows * (queries_ + 2 * kv_)),
        rounded(s.rows * queries_), rounded(s.rows * s.inner),
        rounded(s.rows * s.inner),  s.rows * s.kv_heads * attend_scratch,
    };
    int64_t total = 0;
    for (const int64_t size : sizes) total += size;
    static thread_local Memory memory;
    if (!memory.reserve(total)) return false;
    float** parts[] = {&normed_, &qkv_, &attended_, &gate_, &up_, &scratch_};
    float* at = memory.floats;
    for (int i = 0; i < 6; ++i) {
      *parts[i] = at;
      at += sizes[i];
    }
    scratch_stride_ = attend_scratch;
    return true;
  }

  void run() {
    for (int64_t i = 0; i < step_.layer_count; ++i) {
      layer_ = &step_.layers[i];
      attention();
      mlp();
    }
    for (int64_t r = 0; r < step_.rows; ++r) {
      float* x = step_.x + r * step_.hidden;
      kernels_.rms_norm(x, step_.norm, step_.epsilon, step_.hidden, x);
    }
  }

 private:
  // x normed by `weight`, or x itself where the norm stands behind the block.
  const float* block_input(const float* weight) {
    if (step_.swin != 0) return step_.x;
    for (int64_t r = 0; r < step_.rows; ++r) {
      kernels_.rms_norm(step_.x + r * step_.hidden, weight, step_.epsilon, step_.hidden,
                        normed_ + r * step_.hidden);
    }
    return normed_;
  }

  // Adds to x the block's last linear layer of `from` (rows, k), normed where the norm stands
  // there.
  void block_output(const Linear& last, const float* from, int64_t k, const float* weight) {
    if (step_.swin == 0) {
      linear(&last, 1, from, k, step_.x, step_.hidden, true);
      return;
    }
    linear(&last, 1, from, k, normed_, step_.hidden, false);
    for (int64_t r = 0; r < step_.rows; ++r) {
      float *x = step_.x + r * step_.hidden, *normed = normed_ + r * step_.hidden;
      kernels_.rms_norm(normed, weight, step_.epsilon, step_.hidden, normed);
      for (int64_t i = 0; i < step_.hidden; ++i) x[i] += normed[i];
    }
  }

  void attention() {
    const fastdecode_layer& l = *layer_;
    const float* input = block_input(l.norm_attention);
    const Linear qkv[] = {{l.q, l.q_bias, queries_}, {l.k, l.k_bias, kv_}, {l.v, l.v_bias, kv_}};
    linear(qkv, 3, input, step_.hidden, qkv_, queries_ + 2 * kv_, false);
    const int64_t stored = step_.rows * step_.kv_heads * (longest_ + 1) * step_.head_dim;
    const int64_t group = step_.heads / step_.kv_heads;
    parallel_for(
        step_.rows * step_.kv_heads,
        useful_threads(2 * stored * int64_t{sizeof(float)}, 2 * stored * group, threads_),
        [](void* self, int64_t item) { static_cast<Runner*>(self)->attend(item); }, this);
    block_output({l.o, l.o_bias, step_.hidden}, attended_, queries_, l.norm_attention);
  }

  void attend(int64_t item) {
    const fastdecode_decode_args& s = step_;
    const int64_t row = item / s.kv_heads, head = item % s.kv_heads, d = s.head_dim;
    const int64_t group = s.heads / s.kv_heads;
    float* qkv = qkv_ + row * (queries_ + 2 * kv_);
    const int64_t stored = (row * s.kv_heads + head) * s.slots * d;
    AttendArgs args;
    args.head_dim = d;
    args.group = group;
    args.length = s.lengths[row];
    args.q = qkv + head * group * d;
    args.k = qkv + queries_ + head * d;
    args.v = qkv + queries_ + kv_ + head * d;
    args.q_weight = layer_->qk_weight + head * group * d;
    args.q_bias = layer_->qk_bias + head * group * d;
    args.k_weight = layer_->qk_weight + (s.heads + head) * d;
    args.k_bias = layer_->qk_bias + (s.heads + head) * d;
    args.cos = s.cos + row * d;
    args.sin = s.sin + row * d;
    args.keys = layer_->keys + stored;
    args.values = layer_->values + stored;
    args.next_keys = args.keys + s.slots * d;
    args.scale = s.scale;
    args.scratch = scratch_ + item * scratch_stride_;
    args.out = attended_ + row * queries_ + head * group * d;
    kernels_.attend(args);
  }

  void mlp() {
    const fastdecode_layer& l = *layer_;
    const float* input = block_input(l.norm_mlp);
    const Linear gate = {l.gate, l.gate_bias, step_.inner}, up = {l.up, l.up_bias, step_.inner};
    linear(&gate, 1, input, step_.hidden, gate_, step_.inner, false);
    linear(&up, 1, input, step_.hidden, up_, step_.inner, false);
    kernels_.silu_multiply(gate_, up_, step_.rows * step_.inner);
    block_output({l.down, l.down_bias, step_.hidden}, gate_, step_.inner, l.norm_mlp);
  }

  void linear(const Linear* parts, int count, const float* input, int64_t k, float* out,
              int64_t out_stride, bool add) {
    run_linears(parts, count, input, step_.rows, k, out, out_stride, add, threads_);
  }

  const fastdecode_decode_args& step_;
  const DecodeKernels& kernels_;
  const int64_t queries_, kv_;  // floats of a row's queries, and of its keys
  int64_t longest_ = 0, scratch_stride_ = 0;
  int threads_ = 1;
  const fastdecode_layer* layer_ = nullptr;
  float *normed_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr;
  float *gate_ = nullptr, *up_ = nullptr, *scratch_ = nullptr;
};

}  // namespace
}  // namespace fastdecode

extern "C" {

void fastdecode_decode_args_init(fastdecode_decode_args* args) {
  std::memset(args, 0, sizeof *args);
  args->size = sizeof *args;
  args->threads = 1;
  args->epsilon = 1e-5f;
}

fastdecode_result fastdecode_decode_step(const fastdecode_decode_args* given) {
  using namespace fastdecode;
  if (given == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "args = NULL: must point to the arguments");
  }
  if (given->size != sizeof(fastdecode_decode_args)) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "args->size = %zu: this library expects %zu; call fastdecode_decode_args_init",
                given->size, sizeof(fastdecode_decode_args));
  }
  const fastdecode_result checked = check_decode_args(*given);
  if (checked != FASTDECODE_OK) return checked;
  if (check_isa() != FASTDECODE_OK) return FASTDECODE_INVALID_ARGUMENT;
  Runner runner(*given, decode_kernels());
  if (!runner.reserve()) {
    return fail(FASTDECODE_OUT_OF_MEMORY, "no memory for a step of %lld rows",
                static_cast<long long>(given->rows));
  }
  runner.run();
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_linear(const float* weight, const float* bias, const float* x,
                                    int64_t rows, int64_t k, int64_t features, float* out,
                                    int64_t out_stride, int32_t threads) {
  using namespace fastdecode;
  if (rows < 0 || k < 1 || features < 0 || threads < 0 || out_stride < features) {
    return fail(FASTDECODE_INVALID_ARGUMENT,
                "rows = %lld, k = %lld, features = %lld, out_stride = %lld, threads = %d: none may "
                "be negative, k must be at least 1 and out_stride at least features",
                static_cast<long long>(rows), static_cast<long long>(k),
                static_cast<long long>(features), static_cast<long long>(out_stride), threads);
  }
  if (rows == 0 || features == 0) return FASTDECODE_OK;
  if (weight == nullptr || x == nullptr || out == nullptr) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "weight, x and out must not be NULL");
  }
  if (check_isa() != FASTDECODE_OK) return FASTDECODE_INVALID_ARGUMENT;
  const Linear linear = {weight, bias, features};
  run_linears(&linear, 1, x, rows, k, out, out_stride, false, threads > 0 ? threads : processors());
  return FASTDECODE_OK;
}

}  // extern "C"
