// Part of fastdecode.hpp: a decode step, and some of its operations.
#ifndef FASTDECODE_CPP_DECODING_HPP
#define FASTDECODE_CPP_DECODING_HPP

#include <fastdecode/fastdecode.h>
#include <fastdecode/cpp/base.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastdecode {

// The shape of a model, as in fastdecode_decode_args.
struct ModelShape {
  std::int64_t hidden = 0, inner = 0, heads = 0, kv_heads = 0, head_dim = 0;
  fastdecode_dtype dtype = FASTDECODE_FLOAT32;
  bool swin = false;
  fastdecode_activation activation = FASTDECODE_SILU;
  float epsilon = 1e-5f, qk_epsilon = 1e-5f;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  std::int64_t pages = 0, page_slots = 0;
};

// The rows of a step; (rows, table_width) page numbers.
struct Rows {
  Span<const std::int64_t> lengths;  // (rows,)
  Span<const std::int32_t> table;
  std::int64_t table_width = 0;
  Span<const float> cos, sin;  // (rows, head_dim)
  bool chained = false, stores_only = false;
};

// Runs a model's layers for one new token in every row. It owns the list of layers; the weights and
// pages that they point to are the caller's.
class DecodeStep {
 public:
  explicit DecodeStep(const ModelShape& shape, std::int32_t threads = 1) {
    check(fastdecode_decode_args_init(&args_));
    args_.hidden = shape.hidden;
    args_.inner = shape.inner;
    args_.heads = shape.heads;
    args_.kv_heads = shape.kv_heads;
    args_.head_dim = shape.head_dim;
    args_.dtype = shape.dtype;
    args_.swin = shape.swin ? 1 : 0;
    args_.activation = shape.activation;
    args_.threads = threads;
    args_.epsilon = shape.epsilon;
    args_.qk_epsilon = shape.qk_epsilon;
    const float root = std::sqrt(static_cast<float>(shape.head_dim > 0 ? shape.head_dim : 1));
    args_.scale = shape.scale != 0.0f ? shape.scale : 1.0f / root;
    args_.pages = shape.pages;
    args_.page_slots = shape.page_slots;
  }

  void add(const fastdecode_layer& layer) { layers_.push_back(layer); }

  // x (rows, hidden): embeddings in, normed last hidden states out, unless the rows store only.
  // `norm` (hidden,): weights of the last norm.
  void run(Span<float> x, Span<const float> norm, const Rows& rows) {
    const std::int64_t count = detail::length(rows.lengths.size());
    detail::check_length("x", x.size(), count, args_.hidden);
    detail::check_length("norm", norm.size(), args_.hidden);
    detail::check_length("table", rows.table.size(), count, rows.table_width);
    detail::check_length("cos", rows.cos.size(), count, args_.head_dim);
    detail::check_length("sin", rows.sin.size(), count, args_.head_dim);
    args_.layers = layers_.data();
    args_.layer_count = detail::length(layers_.size());
    args_.norm = norm.data();
    args_.table = rows.table.data();
    args_.table_width = args_.table_stride = rows.table_width;
    args_.chained = rows.chained ? 1 : 0;
    args_.stores_only = rows.stores_only ? 1 : 0;
    args_.rows = count;
    args_.lengths = rows.lengths.data();
    args_.cos = rows.cos.data();
    args_.sin = rows.sin.data();
    args_.x = x.data();
    check(fastdecode_decode_step(&args_));
  }

 private:
  fastdecode_decode_args args_;
  std::vector<fastdecode_layer> layers_;
};

// A matrix (features, k) and how it is stored. `how` points to its factors and offsets, whose
// lengths are the caller's to check. A layer of DecodeStep has the same for its matrices.
class Weights {
 public:
  // `data`: of any container with data() and size().
  template <typename Container>
  Weights(const Container& data, const fastdecode_weights& how) noexcept
      : data_(data.data()), bytes_(data.size() * sizeof(*data.data())), how_(how) {}

  const void* data() const noexcept { return data_; }
  const fastdecode_weights& how() const noexcept { return how_; }

  // Throws if there are fewer bytes than (features, k) take.
  void check_length(const char* name, std::int64_t features, std::int64_t k) const {
    std::int64_t blocks = k / 32, bytes = 1;
    switch (how_.type) {  // the library refuses others
      case FASTDECODE_WEIGHTS_FLOAT32:
      case FASTDECODE_WEIGHTS_BFLOAT16:
      case FASTDECODE_WEIGHTS_FLOAT16:
      case FASTDECODE_WEIGHTS_INT8:
        blocks = k;
        bytes = how_.type == FASTDECODE_WEIGHTS_FLOAT32 ? 4
                : how_.type == FASTDECODE_WEIGHTS_INT8  ? 1
                                                        : 2;
        break;
      case FASTDECODE_WEIGHTS_INT4:
      case FASTDECODE_WEIGHTS_INT8X16:
        bytes = how_.type == FASTDECODE_WEIGHTS_INT4 ? 16 : 32;
        if (features > 0) features = (how_.first + features + 15) / 16 * 16;  // whole panels
        break;
      case FASTDECODE_WEIGHTS_Q8_0:
        bytes = 34;
        break;
      case FASTDECODE_WEIGHTS_Q4_0:
        bytes = 18;
        break;
      default:
        return;
    }
    detail::check_length(name, bytes_, features, blocks, bytes, "bytes");
  }

 private:
  const void* data_;
  std::size_t bytes_;
  fastdecode_weights how_;
};

// out (rows, features) = x (rows, k) . weight (features, k) + bias: fastdecode_linear_of.
inline void linear(const Weights& weight, Span<const float> bias, Span<const float> x,
                   std::int64_t rows, std::int64_t k, std::int64_t features, Span<float> out,
                   std::int32_t threads = 1) {
  weight.check_length("weight", features, k);
  detail::check_length("x", x.size(), rows, k);
  detail::check_length("out", out.size(), rows, features);
  check(fastdecode_linear_of(weight.data(), &weight.how(), detail::optional("bias", bias, features),
                             x.data(), rows, k, features, out.data(), features, threads));
}

// The same of float32 weights.
inline void linear(Span<const float> weight, Span<const float> bias, Span<const float> x,
                   std::int64_t rows, std::int64_t k, std::int64_t features, Span<float> out,
                   std::int32_t threads = 1) {
  detail::check_length("weight", weight.size(), features, k);
  detail::check_length("x", x.size(), rows, k);
  detail::check_length("out", out.size(), rows, features);
  check(fastdecode_linear(weight.data(), FASTDECODE_FLOAT32,
                          detail::optional("bias", bias, features), x.data(), rows, k, features,
                          out.data(), features, threads));
}

// out (rows, n): the RMS norms of x (rows, n).
inline void rms_norm(Span<const float> x, Span<const float> weight, float epsilon,
                     std::int64_t rows, Span<float> out, std::int32_t threads = 1) {
  const std::int64_t n = detail::length(weight.size());
  detail::check_length("x", x.size(), rows, n);
  detail::check_length("out", out.size(), rows, n);
  check(fastdecode_rms_norm(x.data(), nullptr, weight.data(), epsilon, rows, n, nullptr, out.data(),
                            threads));
}

// out (rows, hidden) = weight[tokens], of a weight (vocab, hidden): fastdecode_embed_of.
inline void embed(Span<const std::int64_t> tokens, const Weights& weight, std::int64_t vocab,
                  std::int64_t hidden, Span<float> out, std::int32_t threads = 1) {
  const std::int64_t rows = detail::length(tokens.size());
  weight.check_length("weight", vocab, hidden);
  detail::check_length("out", out.size(), rows, hidden);
  check(fastdecode_embed_of(tokens.data(), rows, weight.data(), &weight.how(), vocab, hidden,
                            out.data(), threads));
}

// The same of float32 weights.
inline void embed(Span<const std::int64_t> tokens, Span<const float> weight, std::int64_t vocab,
                  std::int64_t hidden, Span<float> out, std::int32_t threads = 1) {
  const std::int64_t rows = detail::length(tokens.size());
  detail::check_length("weight", weight.size(), vocab, hidden);
  detail::check_length("out", out.size(), rows, hidden);
  check(fastdecode_embed(tokens.data(), rows, weight.data(), FASTDECODE_FLOAT32, vocab, hidden,
                         out.data(), threads));
}

}  // namespace fastdecode

#endif  // FASTDECODE_CPP_DECODING_HPP
