// A checkpoint's weights in the form that fastdecode_decode_step takes. Nothing here changes after
// the constructor, so all workers share one model.
#pragma once

#include <fastdecode/fastdecode.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "config.h"
#include "safetensors.h"

// After every call of the library. Its message is this thread's, so it is taken at once.
inline void check(fastdecode_result result) {
  if (result != FASTDECODE_OK) throw std::runtime_error(fastdecode_last_error());
}

class Model {
 public:
  explicit Model(const std::string& folder)
      : config(folder), file_(folder + "/model.safetensors"), layers_(config.layers) {
    const Config& c = config;
    const int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim;
    embedding = matrix("model.embed_tokens.weight", c.vocab, c.hidden);
    head = c.tied ? embedding : matrix("lm_head.weight", c.vocab, c.hidden);
    norm = floats("model.norm.weight", {c.hidden});
    for (int64_t i = 0; i < c.layers; ++i) {
      const std::string at = "model.layers." + std::to_string(i) + ".";
      const std::string attention = at + "self_attn.", mlp = at + "mlp.";
      fastdecode_layer& layer = layers_[i];
      layer = {};
      layer.q = matrix(attention + "q_proj.weight", queries, c.hidden);
      layer.k = matrix(attention + "k_proj.weight", keys, c.hidden);
      layer.v = matrix(attention + "v_proj.weight", keys, c.hidden);
      layer.o = matrix(attention + "o_proj.weight", c.hidden, queries);
      layer.gate = matrix(mlp + "gate_proj.weight", c.inner, c.hidden);
      layer.up = matrix(mlp + "up_proj.weight", c.inner, c.hidden);
      layer.down = matrix(mlp + "down_proj.weight", c.hidden, c.inner);
      if (c.attention_bias) {
        layer.q_bias = floats(attention + "q_proj.bias", {queries});
        layer.k_bias = floats(attention + "k_proj.bias", {keys});
        layer.v_bias = floats(attention + "v_proj.bias", {keys});
        layer.o_bias = floats(attention + "o_proj.bias", {c.hidden});
      }
      if (c.mlp_bias) {
        layer.gate_bias = floats(mlp + "gate_proj.bias", {c.inner});
        layer.up_bias = floats(mlp + "up_proj.bias", {c.inner});
        layer.down_bias = floats(mlp + "down_proj.bias", {c.hidden});
      }
      layer.norm_attention = floats(at + "input_layernorm.weight", {c.hidden});
      layer.norm_mlp = floats(at + "post_attention_layernorm.weight", {c.hidden});
      layer.q_norm = floats(attention + "q_norm.weight", {c.heads, c.head_dim});
      layer.q_norm_bias = floats(attention + "q_norm.bias", {c.heads, c.head_dim});
      layer.k_norm = floats(attention + "k_norm.weight", {c.kv_heads, c.head_dim});
      layer.k_norm_bias = floats(attention + "k_norm.bias", {c.kv_heads, c.head_dim});
    }
    make_rotation();
  }
  Model(const Model&) = delete;

  const Config config;
  const void *embedding, *head;  // (vocab, hidden) of config.dtype
  const float* norm;

  // Without keys and values: these are a worker's own.
  const std::vector<fastdecode_layer>& layers() const { return layers_; }

  // (head_dim,) each: the rotation of a token's queries and keys by its place in the sequence.
  const float* cos(int64_t place) const { return &cos_[place * config.head_dim]; }
  const float* sin(int64_t place) const { return &sin_[place * config.head_dim]; }

 private:
  // A matrix in config.dtype: the file's own memory where it has that dtype already.
  const void* matrix(const std::string& name, int64_t out, int64_t in) {
    const SafeTensors::Tensor& tensor = file_.get(name, {out, in});
    if (SafeTensors::dtype_of(tensor) == config.dtype) return tensor.data;
    if (config.dtype != FASTDECODE_FLOAT32) {
      throw std::runtime_error("tensor " + name + " is " + tensor.dtype +
                               "; to compute in it, or in float32, say so as dtype in config.json");
    }
    return as_float32(tensor, out, in);
  }

  // A norm's weights or a bias: always float32.
  const float* floats(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return as_float32(file_.get(name, shape), 1, count);
  }

  // The library's look-up of embeddings turns every dtype into float32: here it looks up all rows.
  const float* as_float32(const SafeTensors::Tensor& tensor, int64_t rows, int64_t columns) {
    copies_.emplace_back(new float[rows * columns]);
    std::vector<int64_t> all(rows);
    for (int64_t row = 0; row < rows; ++row) all[row] = row;
    check(fastdecode_embed(all.data(), rows, tensor.data, SafeTensors::dtype_of(tensor), rows,
                           columns, copies_.back().get(), 1));
    return copies_.back().get();
  }

  // As transformers makes it, in float32. Its cos and sin may differ from these in the last bit.
  void make_rotation() {
    const int64_t n = config.head_dim, half = n / 2;
    cos_.resize(config.context * n);
    sin_.resize(config.context * n);
    for (int64_t i = 0; i < half; ++i) {
      const float power = static_cast<float>(2 * i) / static_cast<float>(n);
      const float turns = 1.0f / std::pow(static_cast<float>(config.rope_theta), power);
      for (int64_t place = 0; place < config.context; ++place) {
        const float angle = static_cast<float>(place) * turns;
        float *cos = &cos_[place * n + i], *sin = &sin_[place * n + i];
        cos[0] = cos[half] = std::cos(angle);
        sin[half] = std::sin(angle);
        sin[0] = -sin[half];  // the library wants the first half negated
      }
    }
  }

  const SafeTensors file_;
  std::vector<std::unique_ptr<float[]>> copies_;
  std::vector<fastdecode_layer> layers_;
  std::vector<float> cos_, sin_;
};
