// Part of fastdecode.hpp: what a token is sampled from, and the sampler.
#ifndef FASTDECODE_CPP_SAMPLING_HPP
#define FASTDECODE_CPP_SAMPLING_HPP

#include <fastdecode/fastdecode.h>
#include <fastdecode/cpp/base.hpp>
#include <fastdecode/cpp/grammar.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace fastdecode {

// A parameter of sampling: one value for every group, or one for each.
template <typename T>
class Parameter {
 public:
  constexpr Parameter(T value) noexcept : value_(value) {}
  constexpr Parameter(Span<const T> each) noexcept : each_(each), value_(), one_(false) {}
  template <typename Container, typename = decltype(std::declval<Container&>().data())>
  constexpr Parameter(Container&& each) noexcept : each_(each), value_(), one_(false) {}

  void set(const char* name, std::int64_t groups, const T*& pointer, T& value) const {
    if (one_) {
      value = value_;
    } else {
      detail::check_length(name, each_.size(), groups);
      pointer = each_.data();
    }
  }

 private:
  Span<const T> each_;
  T value_;
  bool one_ = true;  // an empty span is no value at all
};

// Logits of (rows, vocab), where row r begins r * row_stride elements in.
struct Logits {
  const void* data = nullptr;
  std::size_t size = 0;  // elements
  fastdecode_dtype dtype = FASTDECODE_FLOAT32;
  std::int64_t rows = 0, vocab = 0, row_stride = 0;

  Logits() = default;
  Logits(Span<const float> values, std::int64_t rows_, std::int64_t vocab_)
      : Logits(values.data(), values.size(), FASTDECODE_FLOAT32, rows_, vocab_, vocab_) {}
  // bfloat16 or float16 values.
  Logits(Span<const std::uint16_t> values, fastdecode_dtype dtype_, std::int64_t rows_,
         std::int64_t vocab_)
      : Logits(values.data(), values.size(), dtype_, rows_, vocab_, vocab_) {
    if (dtype_ != FASTDECODE_FLOAT32) return;
    throw Error(FASTDECODE_INVALID_ARGUMENT,
                "dtype = 0: must be 1 (bfloat16) or 2 (float16) for values of two bytes");
  }
  Logits(const void* data_, std::size_t size_, fastdecode_dtype dtype_, std::int64_t rows_,
         std::int64_t vocab_, std::int64_t row_stride_)
      : data(data_),
        size(size_),
        dtype(dtype_),
        rows(rows_),
        vocab(vocab_),
        row_stride(row_stride_) {}
};

// Sets of tokens, each of ranges [lo, hi) that are sorted and disjoint.
class TokenSets {
 public:
  using Range = std::pair<std::int32_t, std::int32_t>;

  TokenSets() = default;
  TokenSets(std::initializer_list<std::initializer_list<Range>> sets) {
    for (const auto& set : sets) add(set);
  }
  // Returns the number of the new set.
  std::int32_t add(std::initializer_list<Range> ranges) {
    return add(Span<const Range>(ranges.begin(), ranges.size()));
  }
  std::int32_t add(Span<const Range> ranges) {
    // First all memory: a set is added whole or not at all.
    make_room(ranges_, 2 * ranges.size());
    make_room(offsets_, 1);
    for (const Range& range : ranges) {
      ranges_.push_back(range.first);
      ranges_.push_back(range.second);
    }
    offsets_.push_back(static_cast<std::int32_t>(ranges_.size() / 2));
    return static_cast<std::int32_t>(offsets_.size()) - 2;
  }
  std::int64_t size() const { return detail::length(offsets_.size()) - 1; }
  Span<const std::int32_t> ranges() const { return ranges_; }
  Span<const std::int32_t> offsets() const { return offsets_; }

 private:
  static void make_room(std::vector<std::int32_t>& values, std::size_t more) {
    const std::size_t wanted = values.size() + more;
    if (wanted > values.capacity()) values.reserve(std::max(wanted, 2 * values.capacity()));
  }

  std::vector<std::int32_t> ranges_, offsets_ = {0};
};

struct SampleOptions {
  Span<const std::int32_t> streams;  // (groups, streams_per_group); empty: one group for each row
  std::int64_t streams_per_group = 1;
  Span<const float> weights;  // (groups, streams_per_group)
  const TokenSets* sets = nullptr;
  Span<const std::int32_t> set_index;  // (groups,)
  Parameter<float> temperature = 1.0f;
  Parameter<std::int32_t> top_k = 0;
  Parameter<float> top_p = 1.0f;
  Parameter<float> min_p = 0.0f;
  Parameter<float> penalty = 1.0f;
  Parameter<std::int64_t> seed = std::int64_t{0};
  Parameter<std::int64_t> step = std::int64_t{0};
  float contrast_alpha = 0.0f;
  std::int32_t contrast_k = 0;
  Span<const std::int32_t> seen;  // (groups, (vocab + 31) / 32)
  Span<const float> noise;        // (groups, vocab)
  std::int32_t threads = 1;
};

// What was sampled, (groups,) each. Valid until the sampler's next call.
struct Samples {
  Span<const std::int64_t> token;
  Span<const float> logprob;
  Span<const std::int32_t> kept, status;
};

// Samples tokens, and owns the results.
class Sampler {
 public:
  Samples sample(const Logits& logits, const SampleOptions& options = {}) {
    const fastdecode_sample_args args = arguments(logits, options);
    check(fastdecode_sample(&args));
    return results(args.groups);
  }

  // Samples, then appends the tokens to the groups of `state`. `options` has no set_index and no
  // step: the grammar chooses the sets, and state.step numbers the tokens. With a penalty it needs
  // options.seen = state.seen.
  Samples sample_advance(const Logits& logits, const SampleOptions& options, const Grammar& grammar,
                         GroupState& state) {
    const fastdecode_sample_args args = arguments(logits, options);
    const fastdecode_advance_args advance =
        state.arguments(grammar, args.groups, args.rows, args.vocab);
    check(fastdecode_sample_advance(&args, &advance));
    return results(args.groups);
  }

 private:
  fastdecode_sample_args arguments(const Logits& logits, const SampleOptions& o) {
    fastdecode_sample_args a;
    check(fastdecode_sample_args_init(&a));
    check_logits(logits);
    a.logits = logits.data;
    a.dtype = logits.dtype;
    a.threads = o.threads;
    a.rows = logits.rows;
    a.vocab = logits.vocab;
    a.row_stride = logits.row_stride;
    a.groups = logits.rows;
    a.streams_per_group = o.streams_per_group;
    if (!o.streams.empty()) {
      const std::int64_t size = detail::length(o.streams.size());
      if (o.streams_per_group < 1 || size % o.streams_per_group != 0) {
        throw Error(FASTDECODE_INVALID_ARGUMENT,
                    "streams_per_group = " + std::to_string(o.streams_per_group) +
                        ": must be at least 1 and divide the " + std::to_string(size) +
                        " elements of streams");
      }
      a.groups = size / o.streams_per_group;
      a.streams = o.streams.data();
    }
    if (a.groups > INT32_MAX) {
      throw Error(FASTDECODE_INVALID_ARGUMENT,
                  "groups = " + std::to_string(a.groups) + ": must be at most 2147483647");
    }
    a.weights = detail::optional("weights", o.weights, a.groups, a.streams_per_group);
    if (o.sets != nullptr) {
      a.ranges = o.sets->ranges().data();
      a.set_offsets = o.sets->offsets().data();
      a.sets = o.sets->size();
    }
    a.set_index = detail::optional("set_index", o.set_index, a.groups);
    o.temperature.set("temperature", a.groups, a.temperature, a.temperature_value);
    o.top_k.set("top_k", a.groups, a.top_k, a.top_k_value);
    o.top_p.set("top_p", a.groups, a.top_p, a.top_p_value);
    o.min_p.set("min_p", a.groups, a.min_p, a.min_p_value);
    o.penalty.set("penalty", a.groups, a.penalty, a.penalty_value);
    o.seed.set("seed", a.groups, a.seed, a.seed_value);
    o.step.set("step", a.groups, a.step, a.step_value);
    a.contrast_alpha = o.contrast_alpha;
    a.contrast_k = o.contrast_k;
    a.seen = detail::optional("seen", o.seen, a.groups, detail::words(a.vocab));
    a.noise = detail::optional("noise", o.noise, a.groups, a.vocab);
    a.noise_stride = a.vocab;
    reserve(a.groups);
    a.token = token_.data();
    a.logprob = logprob_.data();
    a.kept = kept_.data();
    a.status = status_.data();
    return a;
  }

  // The last row may end with its last token. Sizes that the library refuses are left to it.
  static void check_logits(const Logits& logits) {
    if (logits.rows < 1 || logits.vocab < 1) return;
    const bool apart = logits.rows > 1 && logits.row_stride != FASTDECODE_REPEAT;
    const std::int64_t more = apart ? logits.rows - 1 : 0, stride = logits.row_stride;
    if (apart && (stride < logits.vocab || more > (INT64_MAX - logits.vocab) / stride)) return;
    detail::check_length("logits", logits.size, more * stride + logits.vocab);
  }

  // `token_` grows last: if there is no memory for one of the others, the next call tries again.
  void reserve(std::int64_t groups) {
    if (groups <= detail::length(token_.size())) return;
    const std::size_t size = static_cast<std::size_t>(groups);
    logprob_.resize(size);
    kept_.resize(size);
    status_.resize(size);
    token_.resize(size);
  }

  Samples results(std::int64_t groups) const {
    const std::size_t size = static_cast<std::size_t>(groups);
    return {{token_.data(), size},
            {logprob_.data(), size},
            {kept_.data(), size},
            {status_.data(), size}};
  }

  // At least one element, so that no pointer is null.
  std::vector<std::int64_t> token_ = std::vector<std::int64_t>(1);
  std::vector<float> logprob_ = std::vector<float>(1);
  std::vector<std::int32_t> kept_ = std::vector<std::int32_t>(1), status_ = kept_;
};

}  // namespace fastdecode

#endif  // FASTDECODE_CPP_SAMPLING_HPP
