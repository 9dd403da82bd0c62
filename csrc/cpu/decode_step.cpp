// fastdecode_decode_step: calls the parts of a step in their order.

#include <algorithm>

#include "core/weights.h"
#include "cpu/decode_attention.h"
#include "cpu/decode_check.h"
#include "cpu/decode_kernels.h"
#include "cpu/decode_linear.h"
#include "cpu/decode_rows.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

class Runner {
 public:
  Runner(const fastdecode_decode_args& step, const DecodeKernels& kernels)
      : step_(step),
        kernels_(kernels),
        queries_(step.heads * step.head_dim),
        kv_(step.kv_heads * step.head_dim),
        threads_(thread_limit(step.threads)),
        attention_(rows_of(step, 1), kernels, threads_) {}

  bool reserve() {
    const fastdecode_decode_args& s = step_;
    const int64_t sizes[] = {
        rounded_up(s.rows * s.hidden), rounded_up(s.rows * (queries_ + 2 * kv_)),
        rounded_up(s.rows * queries_), rounded_up(s.rows * 2 * s.inner),
        rounded_up(s.rows * s.inner),
    };
    int64_t total = attention_.floats();
    if (total > kMaxElements) return false;
    for (const int64_t size : sizes) total += size;
    static thread_local Memory memory;
    float* at = static_cast<float*>(memory.reserve(total * int64_t{sizeof(float)}));
    if (at == nullptr) return false;
    float** arrays[] = {&normed_, &qkv_, &attended_, &gate_up_, &gated_};
    for (int i = 0; i < 5; ++i) {
      *arrays[i] = at;
      at += sizes[i];
    }
    attention_.use(at);
    return true;
  }

  // False if there was no memory.
  bool run() {
    keep_threads(
        useful(),
        [](void* self) {
          Runner& runner = *static_cast<Runner*>(self);
          runner.ran_ = runner.run_layers();
        },
        this);
    return ran_;
  }

 private:
  // The threads that help with the largest part of a layer; 1: none would.
  int useful() const {
    if (step_.layer_count == 0) return 1;
    const double features = 2.0 * static_cast<double>(step_.inner);
    const double work = features * static_cast<double>(step_.hidden * step_.rows);
    const fastdecode_layer layer = layer_at(step_, 0);
    const int type = layer.weights != nullptr ? layer.weights[4].type : step_.dtype;
    const double bytes = features * static_cast<double>(bytes_of_feature(type, step_.hidden));
    return std::max(useful_threads(bytes, work, threads_), attention_.threads());
  }

  bool run_layers() {
    for (int64_t i = 0; i < step_.layer_count; ++i) {
      layer_ = layer_at(step_, i);
      if (step_.stores_only != 0 && i + 1 == step_.layer_count) return store();
      if (!attention() || !mlp()) return false;
    }
    norm(step_.x, step_.norm, step_.x);
    return true;
  }

  void norm(const float* from, const float* weight, float* to) {
    norm_rows({kernels_, from, nullptr, weight, step_.epsilon, step_.hidden, nullptr, to},
              step_.rows, threads_);
  }

  // The input of a block (attention or MLP): x normed by `weight`, or x itself where the norm comes
  // after the block.
  const float* block_input(const float* weight) {
    if (step_.swin != 0) return step_.x;
    norm(step_.x, weight, normed_);
    return normed_;
  }

  // The end of a block: applies its last linear layer to `from` (rows, k), norms the result if the
  // norm comes after the block, and adds it to x.
  bool block_output(const Linear& last, const float* from, int64_t k, const float* weight) {
    if (step_.swin == 0) return linear(&last, 1, from, k, step_.x, step_.hidden, true);
    if (!linear(&last, 1, from, k, normed_, step_.hidden, false)) return false;
    norm(normed_, weight, normed_);
    for (int64_t i = 0; i < step_.rows * step_.hidden; ++i) step_.x[i] += normed_[i];
    return true;
  }

  // The keys and values of the layer, and nothing else.
  bool store() {
    const Linear kv[] = {{layer_.k, layer_.k_bias, kv_, how(1)},
                         {layer_.v, layer_.v_bias, kv_, how(2)}};
    const float* input = block_input(layer_.norm_attention);
    if (!linear(kv, 2, input, step_.hidden, qkv_ + queries_, stride(), false)) return false;
    attention_.store(heads());
    return true;
  }

  bool attention() {
    const fastdecode_layer& l = layer_;
    const float* input = block_input(l.norm_attention);
    const Linear qkv[] = {{l.q, l.q_bias, queries_, how(0)},
                          {l.k, l.k_bias, kv_, how(1)},
                          {l.v, l.v_bias, kv_, how(2)}};
    if (!linear(qkv, 3, input, step_.hidden, qkv_, stride(), false)) return false;
    attention_.place_and_attend(heads(), step_.chained != 0);
    return block_output({l.o, l.o_bias, step_.hidden, how(3)}, attended_, queries_,
                        l.norm_attention);
  }

  int64_t stride() const { return queries_ + 2 * kv_; }  // of a row in qkv_

  Heads heads() const {
    const fastdecode_layer& l = layer_;
    Heads heads;
    heads.keys = l.keys;
    heads.values = l.values;
    heads.q = qkv_;
    heads.k = qkv_ + queries_;
    heads.v = qkv_ + queries_ + kv_;
    heads.q_stride = heads.kv_stride = stride();
    heads.q_norm = {l.q_norm, l.q_norm_bias, step_.qk_epsilon};
    heads.k_norm = {l.k_norm, l.k_norm_bias, step_.qk_epsilon};
    heads.cos = step_.cos;
    heads.sin = step_.sin;
    heads.scale = step_.scale;
    heads.out = attended_;
    return heads;
  }

  bool mlp() {
    const fastdecode_layer& l = layer_;
    const float* input = block_input(l.norm_mlp);
    const Linear gate_up[] = {{l.gate, l.gate_bias, step_.inner, how(4)},
                              {l.up, l.up_bias, step_.inner, how(5)}};
    if (!linear(gate_up, 2, input, step_.hidden, gate_up_, 2 * step_.inner, false)) return false;
    gate_rows({kernels_, step_.activation, gate_up_, step_.inner, gated_}, step_.rows, threads_);
    return block_output({l.down, l.down_bias, step_.hidden, how(6)}, gated_, step_.inner,
                        l.norm_mlp);
  }

  // How matrix i of the layer is stored.
  fastdecode_weights how(int i) const {
    return layer_.weights != nullptr ? layer_.weights[i] : dense(step_.dtype);
  }

  bool linear(const Linear* parts, int count, const float* input, int64_t k, float* out,
              int64_t out_stride, bool add) {
    return run_linears(parts, count, input, step_.rows, k, out, out_stride, add, threads_);
  }

  const fastdecode_decode_args& step_;
  const DecodeKernels& kernels_;
  const int64_t queries_, kv_;  // floats of a row's queries, and of its keys
  const int threads_;
  Attention attention_;
  bool ran_ = false;
  fastdecode_layer layer_ = {};
  float *normed_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr;
  float *gate_up_ = nullptr, *gated_ = nullptr;
};

}  // namespace
}  // namespace fastdecode

extern "C" {

fastdecode_result fastdecode_decode_args_init_sized(fastdecode_decode_args* args, size_t size,
                                                    size_t layer_size) {
  const fastdecode_result result = fastdecode::set_up(args, size);
  if (result == FASTDECODE_OK) args->layer_size = layer_size;
  return result;
}

fastdecode_result fastdecode_decode_step(const fastdecode_decode_args* given) {
  using namespace fastdecode;
  Given<fastdecode_decode_args> args;
  CHECKED(args.take("args", given));
  CHECKED(check_decode_args(*args));
  CHECKED(check_isa());
  if (args->rows == 0) return FASTDECODE_OK;
  Runner runner(*args, decode_kernels());
  if (!runner.reserve() || !runner.run()) {
    return fail(FASTDECODE_OUT_OF_MEMORY, "no memory for a step of %lld rows",
                static_cast<long long>(args->rows));
  }
  return FASTDECODE_OK;
}

}  // extern "C"
