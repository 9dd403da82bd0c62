// A worker's side of the model: pages of keys and values, and steps of some rows at once.
#pragma once

#include <fastdecode/fastdecode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

constexpr int64_t kPageSlots = 16;    // tokens of a page
constexpr int64_t kPrefillRows = 64;  // of one call: enough to make good use of reading the weights

// A sequence that the model has read: its keys and values are in these pages.
struct Stream {
  std::vector<int32_t> pages;
  int64_t length = 0;  // tokens stored
};

inline int64_t pages_for(int64_t tokens) {
  return (tokens + kPageSlots - 1) / kPageSlots;
}

class Decoder {
 public:
  Decoder(const Model& model, int64_t pages, int32_t threads)
      : model_(model), pages_(pages), layers_(model.layers()), threads_(threads) {
    const Config& c = model.config;
    const int64_t bytes = c.dtype == FASTDECODE_FLOAT32 ? 4 : 2;
    const int64_t layer_bytes = pages * kPageSlots * c.kv_heads * c.head_dim * bytes;
    for (fastdecode_layer& layer : layers_) {
      // Not set to zero: the library reads no slot before it has written it.
      for (void** memory : {&layer.keys, &layer.values}) {
        memory_.emplace_back(new char[layer_bytes]);
        *memory = memory_.back().get();
      }
    }
    for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
    table_width_ = pages_for(c.context);
  }
  Decoder(const Decoder&) = delete;

  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }

  // Gives an empty stream the pages for so many tokens; there must be enough of them.
  void open(Stream& stream, int64_t tokens) {
    const auto first = free_.end() - pages_for(tokens);
    stream.pages.assign(first, free_.end());
    stream.length = 0;
    free_.erase(first, free_.end());
  }
  void close(Stream& stream) {
    free_.insert(free_.end(), stream.pages.begin(), stream.pages.end());
    stream.pages.clear();
  }

  // Stores the keys and values of tokens, in few calls: the rows of a call are successive tokens,
  // each of which attends to those before it.
  void prefill(Stream& stream, const int32_t* tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      add_row(stream, tokens[i]);
      if (rows() == kPrefillRows || i + 1 == count) run(/*prefill=*/true);
    }
  }

  // One more row of the next step: a stream and its next token.
  void add_row(Stream& stream, int32_t token) {
    tokens_.push_back(token);
    lengths_.push_back(stream.length);
    table_.resize(table_.size() + table_width_);
    std::copy(stream.pages.begin(), stream.pages.end(), table_.end() - table_width_);
    const float *cos = model_.cos(stream.length), *sin = model_.sin(stream.length);
    cos_.insert(cos_.end(), cos, cos + model_.config.head_dim);
    sin_.insert(sin_.end(), sin, sin + model_.config.head_dim);
    ++stream.length;
  }

  // Feeds the rows, and writes their logits (rows, vocab). A row's are the same bits whatever the
  // other rows are.
  void step(float* logits) {
    const Config& c = model_.config;
    const int64_t count = rows();
    run(/*prefill=*/false);
    check(fastdecode_linear(model_.head, c.dtype, nullptr, x_.data(), count, c.hidden, c.vocab,
                            logits, c.vocab, threads_));
  }

 private:
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }

  void run(bool prefill) {
    const Config& c = model_.config;
    x_.resize(rows() * c.hidden);
    check(fastdecode_embed(tokens_.data(), rows(), model_.embedding, c.dtype, c.vocab, c.hidden,
                           x_.data(), threads_));
    fastdecode_decode_args args;
    fastdecode_decode_args_init(&args);
    args.layers = layers_.data();
    args.layer_count = c.layers;
    args.hidden = c.hidden;
    args.inner = c.inner;
    args.heads = c.heads;
    args.kv_heads = c.kv_heads;
    args.head_dim = c.head_dim;
    args.dtype = c.dtype;
    args.swin = c.swin;
    args.threads = threads_;
    args.epsilon = c.epsilon;
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
    args.norm = model_.norm;
    args.pages = pages_;
    args.page_slots = kPageSlots;
    args.table = table_.data();
    args.table_stride = table_width_;
    args.table_width = table_width_;
    args.chained = args.stores_only = prefill ? 1 : 0;
    args.rows = rows();
    args.lengths = lengths_.data();
    args.cos = cos_.data();
    args.sin = sin_.data();
    args.x = x_.data();
    check(fastdecode_decode_step(&args));
    tokens_.clear();
    lengths_.clear();
    table_.clear();
    cos_.clear();
    sin_.clear();
  }

  const Model& model_;
  const int64_t pages_;
  std::vector<fastdecode_layer> layers_;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<int32_t> free_;
  int64_t table_width_;
  const int32_t threads_;
  // Of the rows:
  std::vector<int64_t> tokens_, lengths_;
  std::vector<int32_t> table_;
  std::vector<float> cos_, sin_, x_;
};
