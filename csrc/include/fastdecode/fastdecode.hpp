// fastdecode for C++17: the C interface with spans, exceptions and owned results. Header only; link
// libfastdecode. What is computed, and every default, is in fastdecode.h.
//
// Functions throw fastdecode::Error with the library's message. Besides what the library checks,
// they check that each span is as long as the sizes say. Spans own nothing: what they
// point to must live until the call ends. Calls allocate only where a call has more groups than any
// call of the same object before.
//
// Objects may be used by one thread at a time, different objects by several.
#ifndef FASTDECODE_FASTDECODE_HPP
#define FASTDECODE_FASTDECODE_HPP

#include <fastdecode/fastdecode.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastdecode {

class Error : public std::runtime_error {
 public:
  Error(fastdecode_result result, const std::string& message)
      : std::runtime_error(message), result_(result) {}
  fastdecode_result result() const noexcept { return result_; }

 private:
  fastdecode_result result_;
};

// Throws the last error of this thread if the result is one.
inline void check(fastdecode_result result) {
  if (result != FASTDECODE_OK) throw Error(result, fastdecode_last_error());
}

// A pointer and a number of elements: of a vector, array, C array, or anything with data() and
// size().
template <typename T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(std::nullptr_t) noexcept {}
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <typename Container,
            typename = std::enable_if_t<std::is_convertible_v<
                std::remove_pointer_t<decltype(std::declval<Container&>().data())> (*)[], T (*)[]>>>
  constexpr Span(Container&& container) noexcept
      : data_(container.data()), size_(container.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

inline std::int64_t length(std::size_t size) {
  return static_cast<std::int64_t>(size);
}

// Throws if a span has fewer elements than a * b * c. Sizes that are negative or too large to be
// multiplied are left to the library, which refuses them.
inline void check_length(const char* name, std::size_t size, std::int64_t a, std::int64_t b = 1,
                         std::int64_t c = 1) {
  std::uint64_t needed = 1;
  for (const std::int64_t factor : {a, b, c}) {
    if (factor <= 0) return;
    if (needed > UINT64_MAX / static_cast<std::uint64_t>(factor)) return;
    needed *= static_cast<std::uint64_t>(factor);
  }
  if (size >= needed) return;
  throw Error(FASTDECODE_INVALID_ARGUMENT, std::string(name) + ": has " + std::to_string(size) +
                                               " elements; must have at least " +
                                               std::to_string(needed));
}

// Words of a set of bits, one for each token.
constexpr std::int64_t words(std::int64_t vocab) {
  return vocab / 32 + (vocab % 32 > 0 ? 1 : 0);
}

// A span that may be empty: it is then left out.
template <typename T>
T* optional(const char* name, Span<T> span, std::int64_t a, std::int64_t b = 1) {
  if (span.empty()) return nullptr;
  check_length(name, span.size(), a, b);
  return span.data();
}

}  // namespace detail

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
      : Logits(values.data(), values.size(), dtype_, rows_, vocab_, vocab_) {}
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

// The tables of a grammar: see fastdecode_grammar.
struct Grammar {
  std::int64_t classes = 1;
  std::vector<std::int32_t> set_of, forced;      // (modes,)
  std::vector<std::int32_t> tight_set_of, room;  // (modes,) or empty
  std::vector<std::int32_t> following;           // (modes, classes)
  std::vector<std::int32_t> class_ranges;        // (n, 3)

  std::int64_t modes() const { return detail::length(set_of.size()); }

  fastdecode_grammar tables() const {
    detail::check_length("forced", forced.size(), modes());
    detail::check_length("following", following.size(), modes(), classes);
    if (class_ranges.size() % 3 != 0) {
      throw Error(FASTDECODE_INVALID_ARGUMENT,
                  "class_ranges: has " + std::to_string(class_ranges.size()) +
                      " elements; must have 3 for each range: lo, hi and class");
    }
    fastdecode_grammar tables = {};
    tables.modes = modes();
    tables.classes = classes;
    tables.set_of = set_of.data();
    tables.tight_set_of = table("tight_set_of", tight_set_of);
    tables.room = table("room", room);
    tables.forced = forced.data();
    tables.following = following.data();
    tables.class_ranges = class_ranges.data();
    tables.class_range_count = detail::length(class_ranges.size()) / 3;
    return tables;
  }

 private:
  const std::int32_t* table(const char* name, const std::vector<std::int32_t>& values) const {
    return values.empty() ? nullptr
                          : detail::optional(name, Span<const std::int32_t>(values), modes());
  }
};

// The state of groups, which it owns: see fastdecode_advance_args.
struct GroupState {
  std::vector<std::int32_t> mode;
  std::vector<std::int64_t> step, limit;  // limit may be empty
  std::vector<std::uint8_t> finished;
  std::vector<std::int64_t> inputs, lengths;  // (rows,) or empty
  std::vector<std::int32_t> seen;             // (groups, (vocab + 31) / 32) or empty
  std::vector<std::int64_t> sequences;        // (groups, capacity) or empty
  std::int64_t capacity = 0;

  GroupState() = default;
  // Of groups that begin in a mode, with room for `capacity` tokens each.
  GroupState(std::int64_t groups, std::int64_t rows, std::int64_t vocab, std::int64_t capacity_,
             std::int32_t first_mode = 0)
      : mode(count(groups), first_mode),
        step(count(groups)),
        finished(count(groups)),
        inputs(count(rows)),
        lengths(count(rows)),
        seen(count(groups, detail::words(vocab))),
        sequences(count(groups, capacity_)),
        capacity(capacity_) {}

  fastdecode_advance_args arguments(const Grammar& grammar, std::int64_t groups, std::int64_t rows,
                                    std::int64_t vocab) {
    fastdecode_advance_args args;
    check(fastdecode_advance_args_init(&args));
    args.grammar = grammar.tables();
    args.groups = groups;
    args.rows = rows;
    args.vocab = vocab;
    detail::check_length("mode", mode.size(), groups);
    detail::check_length("step", step.size(), groups);
    detail::check_length("finished", finished.size(), groups);
    args.mode = mode.data();
    args.step = step.data();
    args.finished = finished.data();
    args.limit = array("limit", limit, groups);
    args.inputs = array("inputs", inputs, rows);
    args.lengths = array("lengths", lengths, rows);
    args.seen = array("seen", seen, groups, detail::words(vocab));
    args.sequences = array("sequences", sequences, groups, capacity);
    args.capacity = capacity;
    return args;
  }

 private:
  // Elements of an array of a * b.
  static std::size_t count(std::int64_t a, std::int64_t b = 1) {
    constexpr std::int64_t kMost = std::int64_t{1} << 47;
    for (const std::int64_t n : {a, b}) {
      if (n >= 0 && n <= kMost) continue;
      throw Error(FASTDECODE_INVALID_ARGUMENT,
                  "GroupState: a size is " + std::to_string(n) + "; must be in [0, 2^47]");
    }
    if (b > 0 && a > kMost / b) {
      throw Error(FASTDECODE_INVALID_ARGUMENT, "GroupState: an array would have " +
                                                   std::to_string(a) + " * " + std::to_string(b) +
                                                   " elements; must have at most 2^47");
    }
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
  }
  template <typename T>
  static T* array(const char* name, std::vector<T>& values, std::int64_t a, std::int64_t b = 1) {
    return values.empty() ? nullptr : detail::optional(name, Span<T>(values), a, b);
  }
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

// Appends given tokens to the groups of `state`: fastdecode_advance. `streams` as in SampleOptions.
inline void advance(Span<const std::int64_t> token, const Grammar& grammar, GroupState& state,
                    std::int64_t rows, std::int64_t vocab, Span<const std::int32_t> streams = {},
                    std::int64_t streams_per_group = 1) {
  const std::int64_t groups = detail::length(token.size());
  fastdecode_advance_args args = state.arguments(grammar, groups, rows, vocab);
  args.token = token.data();
  args.streams = detail::optional("streams", streams, groups, streams_per_group);
  args.streams_per_group = streams_per_group;
  check(fastdecode_advance(&args));
}

// The shape of a model, as in fastdecode_decode_args.
struct ModelShape {
  std::int64_t hidden = 0, inner = 0, heads = 0, kv_heads = 0, head_dim = 0;
  fastdecode_dtype dtype = FASTDECODE_FLOAT32;
  bool swin = false;
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
  bool chained = false;
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
    args_.threads = threads;
    args_.epsilon = shape.epsilon;
    args_.qk_epsilon = shape.qk_epsilon;
    const float root = std::sqrt(static_cast<float>(shape.head_dim > 0 ? shape.head_dim : 1));
    args_.scale = shape.scale != 0.0f ? shape.scale : 1.0f / root;
    args_.pages = shape.pages;
    args_.page_slots = shape.page_slots;
  }

  void add(const fastdecode_layer& layer) { layers_.push_back(layer); }

  // x (rows, hidden): embeddings in, normed last hidden states out. `norm` (hidden,): weights of
  // the last norm.
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

// out (rows, features) = x (rows, k) . weight (features, k) + bias: fastdecode_linear, float32
// weights.
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

// out (rows, hidden) = weight[tokens], of float32 weight (vocab, hidden).
inline void embed(Span<const std::int64_t> tokens, Span<const float> weight, std::int64_t vocab,
                  std::int64_t hidden, Span<float> out, std::int32_t threads = 1) {
  const std::int64_t rows = detail::length(tokens.size());
  detail::check_length("weight", weight.size(), vocab, hidden);
  detail::check_length("out", out.size(), rows, hidden);
  check(fastdecode_embed(tokens.data(), rows, weight.data(), FASTDECODE_FLOAT32, vocab, hidden,
                         out.data(), threads));
}

}  // namespace fastdecode

#endif  // FASTDECODE_FASTDECODE_HPP
