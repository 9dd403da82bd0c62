// Samples, advances and decodes by fastdecode.hpp and by the C functions: the same, bit for bit.
// Prints "same", and the messages of calls that are refused.

#include <fastdecode/fastdecode.hpp>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

static long allocations = 0;

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace {

constexpr std::int64_t kVocab = 300, kGroups = 2;

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::printf("%d: not true: %s\n", __LINE__, #condition); \
      std::exit(1);                                            \
    }                                                          \
  } while (0)

std::vector<float> numbers(std::size_t n, unsigned seed) {
  std::vector<float> values(n);
  for (float& x : values) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

// Where the C functions write, and whether fastdecode.hpp returned the same bits.
struct Results {
  std::array<std::int64_t, kGroups> token;
  std::array<float, kGroups> logprob;
  std::array<std::int32_t, kGroups> kept, status;

  void written_by(fastdecode_sample_args& args) {
    args.token = token.data();
    args.logprob = logprob.data();
    args.kept = kept.data();
    args.status = status.data();
  }
  bool operator==(const fastdecode::Samples& got) const {
    return equal(token, got.token) && equal(logprob, got.logprob) && equal(kept, got.kept) &&
           equal(status, got.status);
  }

 private:
  template <typename One, typename Other>
  static bool equal(const One& one, const Other& other) {
    return one.size() == other.size() &&
           std::memcmp(one.data(), other.data(), one.size() * sizeof one[0]) == 0;
  }
};

void same_defaults(const std::vector<float>& logits) {
  Results results;
  fastdecode_sample_args args;
  REQUIRE(fastdecode_sample_args_init(&args) == FASTDECODE_OK);
  args.logits = logits.data();
  args.rows = args.groups = 2;
  args.vocab = args.row_stride = kVocab;
  results.written_by(args);
  REQUIRE(fastdecode_sample(&args) == FASTDECODE_OK);
  fastdecode::Sampler sampler;
  const fastdecode::Samples got = sampler.sample({logits, 2, kVocab});
  REQUIRE(results == got);
}

void same_samples(const std::vector<float>& logits) {
  const std::array<std::int32_t, 4> streams = {0, 1, 1, -1};
  const float weights[] = {3.0f, -2.0f, 1.0f, 1.0f};
  const std::vector<std::int32_t> top_k = {50, 0};
  const fastdecode::TokenSets sets = {{{10, 200}, {250, 300}}};

  Results results;
  fastdecode_sample_args args;
  REQUIRE(fastdecode_sample_args_init(&args) == FASTDECODE_OK);
  args.logits = logits.data();
  args.rows = 2;
  args.vocab = args.row_stride = kVocab;
  args.groups = kGroups;
  args.streams_per_group = 2;
  args.streams = streams.data();
  args.weights = weights;
  args.ranges = sets.ranges().data();
  args.set_offsets = sets.offsets().data();
  args.sets = 1;
  args.temperature_value = 0.7f;
  args.top_k = top_k.data();
  args.top_p_value = 0.9f;
  args.seed_value = 7;
  results.written_by(args);

  fastdecode::Sampler sampler;
  fastdecode::SampleOptions options;
  options.streams = streams;
  options.streams_per_group = 2;
  options.weights = weights;
  options.sets = &sets;
  options.temperature = 0.7f;
  options.top_k = top_k;
  options.top_p = 0.9f;
  options.seed = 7;
  long before = 0;
  for (std::int64_t step = 0; step < 50; ++step) {
    args.step_value = step;
    options.step = step;
    REQUIRE(fastdecode_sample(&args) == FASTDECODE_OK);
    const fastdecode::Samples got = sampler.sample({logits, 2, kVocab}, options);
    REQUIRE(results == got);
    if (step == 0) before = allocations;
  }
  REQUIRE(allocations == before);
}

// Every option that has values for each group, and those that `same_samples` leaves out.
void same_options(const std::vector<float>& logits) {
  const fastdecode::TokenSets sets = {{{0, 150}}, {{100, 300}}};
  const std::vector<std::int32_t> set_index = {1, 0}, top_k = {90, 60};
  const std::vector<float> temperature = {0.8f, 1.2f}, top_p = {0.95f, 0.9f}, min_p = {0.2f, 0.3f};
  const std::vector<float> penalty = {1.5f, 0.7f}, noise = numbers(kGroups * kVocab, 2);
  const std::vector<std::int64_t> seed = {3, 4}, step = {5, 6};
  const std::vector<std::int32_t> seen(kGroups * ((kVocab + 31) / 32), 0x0f0f0f0f);

  Results results;
  fastdecode_sample_args args;
  REQUIRE(fastdecode_sample_args_init(&args) == FASTDECODE_OK);
  args.logits = logits.data();
  args.rows = args.groups = kGroups;
  args.vocab = args.row_stride = args.noise_stride = kVocab;
  args.ranges = sets.ranges().data();
  args.set_offsets = sets.offsets().data();
  args.sets = sets.size();
  args.set_index = set_index.data();
  args.temperature = temperature.data();
  args.top_k = top_k.data();
  args.top_p = top_p.data();
  args.min_p = min_p.data();
  args.penalty = penalty.data();
  args.seen = seen.data();
  args.seed = seed.data();
  args.step = step.data();
  results.written_by(args);

  fastdecode::Sampler sampler;
  fastdecode::SampleOptions options;
  options.sets = &sets;
  options.set_index = set_index;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.min_p = min_p;
  options.penalty = penalty;
  options.seen = seen;
  options.seed = seed;
  options.step = step;
  const auto same = [&] {
    REQUIRE(fastdecode_sample(&args) == FASTDECODE_OK);
    REQUIRE(results == sampler.sample({logits, kGroups, kVocab}, options));
  };
  same();
  const std::array<std::int32_t, kGroups> kept = results.kept;
  args.noise = noise.data();
  options.noise = noise;
  same();
  args.contrast_alpha = options.contrast_alpha = 0.9f;
  args.contrast_k = options.contrast_k = 10;
  args.streams_per_group = options.streams_per_group = 2;
  const std::int32_t streams[] = {0, 1, 1, 0};
  const float weights[] = {3.0f, -2.0f, 1.5f, -0.5f};
  args.streams = streams;
  options.streams = streams;
  args.weights = weights;
  options.weights = weights;
  same();
  REQUIRE(results.kept != kept);
}

fastdecode::Grammar two_modes() {
  fastdecode::Grammar grammar;
  grammar.classes = 2;
  grammar.set_of = {0, 1};
  grammar.forced = {-1, -1};
  grammar.following = {0, 1, 1, 0};
  grammar.class_ranges = {0, 150, 1};
  return grammar;
}

void same_sequences(const std::vector<float>& logits) {
  const fastdecode::Grammar grammar = two_modes();
  const fastdecode::TokenSets sets = {{{0, 300}}, {{100, 200}}};
  fastdecode::GroupState own(2, 2, kVocab, 8), other(2, 2, kVocab, 8), given(2, 2, kVocab, 8);
  fastdecode::Sampler sampler;
  fastdecode::SampleOptions options;
  options.sets = &sets;
  options.penalty = 1.3f;
  options.seen = own.seen;

  Results results;
  fastdecode_sample_args args;
  REQUIRE(fastdecode_sample_args_init(&args) == FASTDECODE_OK);
  args.logits = logits.data();
  args.rows = args.groups = 2;
  args.vocab = args.row_stride = kVocab;
  args.ranges = sets.ranges().data();
  args.set_offsets = sets.offsets().data();
  args.sets = sets.size();
  args.penalty_value = 1.3f;
  args.seen = other.seen.data();
  results.written_by(args);
  const fastdecode_advance_args advance = other.arguments(grammar, 2, 2, kVocab);
  for (int step = 0; step < 8; ++step) {
    const fastdecode::Samples got =
        sampler.sample_advance({logits, 2, kVocab}, options, grammar, own);
    REQUIRE(fastdecode_sample_advance(&args, &advance) == FASTDECODE_OK);
    REQUIRE(results == got);
    fastdecode::advance(results.token, grammar, given, 2, kVocab);
  }
  REQUIRE(own.sequences == other.sequences);
  REQUIRE(own.sequences == given.sequences);
  REQUIRE(own.seen == given.seen);
  REQUIRE(own.mode == other.mode && own.mode == given.mode);
  REQUIRE(own.step[0] == 8);
}

void same_steps(fastdecode_activation activation) {
  constexpr std::int64_t hidden = 8, inner = 12, heads = 2, kv = 1, dim = 4, slots = 4, rows = 2;
  const std::vector<float> weight = numbers(hidden * inner, 3), norm(hidden, 1.0f);
  const std::vector<float> cos = numbers(rows * dim, 4), sin = numbers(rows * dim, 5);
  const std::vector<std::int64_t> lengths = {0, 0};
  const std::vector<std::int32_t> table = {1, 0};
  std::vector<float> keys(2 * kv * slots * dim), values = keys, x = numbers(rows * hidden, 6);
  std::vector<float> keys_c = keys, values_c = values, x_c = x;
  fastdecode_layer layer = {};
  layer.q = layer.k = layer.v = layer.o = weight.data();
  layer.gate = layer.up = layer.down = weight.data();
  layer.norm_attention = layer.norm_mlp = norm.data();
  layer.keys = keys.data();
  layer.values = values.data();

  fastdecode::ModelShape shape;
  shape.hidden = hidden;
  shape.inner = inner;
  shape.heads = heads;
  shape.kv_heads = kv;
  shape.head_dim = dim;
  shape.pages = 2;
  shape.page_slots = slots;
  shape.activation = activation;
  fastdecode::DecodeStep step(shape);
  step.add(layer);
  fastdecode::Rows place;
  place.lengths = lengths;
  place.table = table;
  place.table_width = 1;
  place.cos = cos;
  place.sin = sin;
  step.run(x, norm, place);

  layer.keys = keys_c.data();
  layer.values = values_c.data();
  fastdecode_decode_args args;
  REQUIRE(fastdecode_decode_args_init(&args) == FASTDECODE_OK);
  args.layers = &layer;
  args.layer_count = 1;
  args.hidden = hidden;
  args.inner = inner;
  args.heads = heads;
  args.kv_heads = kv;
  args.head_dim = dim;
  args.scale = 0.5f;
  args.activation = activation;
  args.norm = norm.data();
  args.pages = 2;
  args.page_slots = slots;
  args.table = table.data();
  args.table_stride = args.table_width = 1;
  args.rows = rows;
  args.lengths = lengths.data();
  args.cos = cos.data();
  args.sin = sin.data();
  args.x = x_c.data();
  REQUIRE(fastdecode_decode_step(&args) == FASTDECODE_OK);
  REQUIRE(x == x_c && keys == keys_c && values == values_c);
  REQUIRE(x != numbers(rows * hidden, 6));
  if (activation == FASTDECODE_SILU) return;
  args.activation = FASTDECODE_SILU;
  x_c = numbers(rows * hidden, 6);
  REQUIRE(fastdecode_decode_step(&args) == FASTDECODE_OK);
  REQUIRE(x != x_c);
}

void same_operations() {
  const std::vector<float> weight = numbers(6 * 4, 7), x = numbers(2 * 4, 8), bias = numbers(6, 9);
  std::vector<float> out(12), out_c(12), normed(8), normed_c(8), rows(8), rows_c(8);
  fastdecode::linear(weight, bias, x, 2, 4, 6, out);
  REQUIRE(fastdecode_linear(weight.data(), FASTDECODE_FLOAT32, bias.data(), x.data(), 2, 4, 6,
                            out_c.data(), 6, 1) == FASTDECODE_OK);
  REQUIRE(out == out_c);
  fastdecode::rms_norm(x, {bias.data(), 4}, 1e-5f, 2, normed);
  REQUIRE(fastdecode_rms_norm(x.data(), nullptr, bias.data(), 1e-5f, 2, 4, nullptr, normed_c.data(),
                              1) == FASTDECODE_OK);
  REQUIRE(normed == normed_c);
  const std::int64_t tokens[] = {5, 1};
  fastdecode::embed(tokens, weight, 6, 4, rows);
  REQUIRE(fastdecode_embed(tokens, 2, weight.data(), FASTDECODE_FLOAT32, 6, 4, rows_c.data(), 1) ==
          FASTDECODE_OK);
  REQUIRE(rows == rows_c);
}

// Weights of other types, of products, of embeddings and of a step.
void same_small_weights() {
  constexpr std::int64_t features = 6, k = 64;
  std::vector<std::int8_t> bytes(features * k);
  std::vector<float> scale(16), values(features * k), offset(16 * 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::int8_t>(static_cast<int>(i * 37 % 255) - 127);
    scale[i / k] = 0.001f * static_cast<float>(i / k + 1);
    values[i] = static_cast<float>(bytes[i]) * scale[i / k];
  }
  const std::vector<std::uint16_t> halves(16 * 2, 0x2e66);  // 0.1 in float16
  const std::vector<float> x = numbers(2 * k, 8), bias = numbers(features, 9);
  const std::int64_t tokens[] = {5, 1};
  for (const fastdecode_weights& how :
       {fastdecode_weights{FASTDECODE_WEIGHTS_INT8, 0, scale.data(), nullptr, 0},
        {FASTDECODE_WEIGHTS_INT4, 32, halves.data(), offset.data(), 0},
        {FASTDECODE_WEIGHTS_INT4, 64, halves.data(), nullptr, 0},
        {FASTDECODE_WEIGHTS_INT4, 64, halves.data(), nullptr, 16 - features},
        {FASTDECODE_WEIGHTS_INT8X16, 0, scale.data(), nullptr, 0},
        {FASTDECODE_WEIGHTS_Q8_0, 0, nullptr, nullptr, 0},
        {FASTDECODE_WEIGHTS_Q4_0, 0, nullptr, nullptr, 0}}) {
    const std::vector<std::uint8_t> blocks(16 * 68, 0x21);
    const bool int8 = how.type == FASTDECODE_WEIGHTS_INT8;
    const fastdecode::Weights weight =
        int8 ? fastdecode::Weights(bytes, how) : fastdecode::Weights(blocks, how);
    std::vector<float> out(2 * features, -1.0f), out_c(2 * features, -2.0f);
    fastdecode::linear(weight, bias, x, 2, k, features, out);
    REQUIRE(fastdecode_linear_of(weight.data(), &how, bias.data(), x.data(), 2, k, features,
                                 out_c.data(), features, 1) == FASTDECODE_OK);
    REQUIRE(out == out_c);
    std::vector<float> rows(2 * k, -1.0f), rows_c(2 * k, -2.0f);
    fastdecode::embed(tokens, weight, features, k, rows);
    REQUIRE(fastdecode_embed_of(tokens, 2, weight.data(), &how, features, k, rows_c.data(), 1) ==
            FASTDECODE_OK);
    REQUIRE(rows == rows_c);
    if (!int8) continue;
    for (std::size_t i = 0; i < 64; ++i) REQUIRE(rows[i] == values[5 * k + i]);
  }
}

// A step with matrices of int8 is near to one with the same numbers in float32.
void step_of_small_weights() {
  constexpr std::int64_t hidden = 8, slots = 4;
  std::vector<std::int8_t> bytes(hidden * hidden);
  std::vector<float> values(hidden * hidden);
  const std::vector<float> scale(hidden, 0.01f), norm(hidden, 1.0f), turn(4, 1.0f);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::int8_t>(static_cast<int>(i * 37 % 255) - 127);
    values[i] = static_cast<float>(bytes[i]) * scale[0];
  }
  fastdecode_weights all[7];
  for (fastdecode_weights& one : all) one = {FASTDECODE_WEIGHTS_INT8, 0, scale.data(), nullptr, 0};
  std::vector<float> found[2];
  for (const bool small : {false, true}) {
    std::vector<float> keys(2 * slots * 4), kept = keys;
    fastdecode_layer layer = {};
    const void* weight = small ? static_cast<const void*>(bytes.data()) : values.data();
    layer.q = layer.k = layer.v = layer.o = layer.gate = layer.up = layer.down = weight;
    layer.norm_attention = layer.norm_mlp = norm.data();
    layer.keys = keys.data();
    layer.values = kept.data();
    if (small) layer.weights = all;
    fastdecode::ModelShape shape;
    shape.hidden = shape.inner = hidden;
    shape.heads = shape.kv_heads = 2;
    shape.head_dim = 4;
    shape.pages = 1;
    shape.page_slots = slots;
    fastdecode::DecodeStep step(shape);
    step.add(layer);
    const std::int64_t lengths[] = {0};
    const std::int32_t table[] = {0};
    fastdecode::Rows place;
    place.lengths = lengths;
    place.table = table;
    place.table_width = 1;
    place.cos = place.sin = turn;
    found[small] = numbers(hidden, 6);
    step.run(found[small], norm, place);
  }
  float difference = 0.0f, size = 0.0f;
  for (std::size_t i = 0; i < hidden; ++i) {
    difference = std::max(difference, std::abs(found[0][i] - found[1][i]));
    size = std::max(size, std::abs(found[0][i]));
  }
  REQUIRE(difference > 0.0f && difference < 0.05f * size);
}

template <typename Call>
void refused(Call call) {
  try {
    call();
    std::printf("not refused\n");
  } catch (const fastdecode::Error& error) {
    std::printf("%d %s\n", error.result(), error.what());
  }
}

}  // namespace

int main() {
  const std::vector<float> logits = numbers(2 * kVocab, 1);
  same_defaults(logits);
  same_samples(logits);
  same_options(logits);
  same_sequences(logits);
  for (const fastdecode_activation one : {FASTDECODE_SILU, FASTDECODE_GELU_TANH, FASTDECODE_GELU}) {
    same_steps(one);
  }
  same_operations();
  same_small_weights();
  step_of_small_weights();
  std::printf("same\n");

  fastdecode::Sampler sampler;
  fastdecode::SampleOptions options;
  options.temperature = -1.0f;
  refused([&] { sampler.sample({logits, 2, kVocab}, options); });
  const std::vector<float> one = {1.0f};
  options.temperature = one;
  refused([&] { sampler.sample({logits, 2, kVocab}, options); });
  refused([&] { sampler.sample({logits, 3, kVocab}); });
  refused([&] { sampler.sample({logits, -1, kVocab}); });
  options = {};
  options.streams = nullptr;
  options.penalty = 1.5f;
  refused([&] { sampler.sample({logits, 2, kVocab}, options); });
  options = {};
  options.top_p = std::vector<float>{};
  refused([&] { sampler.sample({logits, 2, kVocab}, options); });
  options = {};
  refused([&] {
    sampler.sample({logits.data(), 10, FASTDECODE_FLOAT32, 2, kVocab, FASTDECODE_REPEAT}, options);
  });
  refused([&] { sampler.sample({logits, INT64_MAX, kVocab}, options); });
  refused([] { fastdecode::GroupState(2, 2, kVocab, std::int64_t{1} << 47); });
  fastdecode::Grammar grammar;
  grammar.set_of = grammar.following = {0};
  grammar.forced = {-1};
  fastdecode::GroupState state(2, 2, kVocab, 4);
  const fastdecode::TokenSets sets = {{{0, 4}}};
  options.sets = &sets;
  options.step = std::int64_t{5};
  refused([&] { sampler.sample_advance({logits, 2, kVocab}, options, grammar, state); });
  const std::vector<std::int64_t> given = {1, 2};
  grammar.set_of = {-2};
  refused([&] { fastdecode::advance(given, grammar, state, 2, kVocab); });
  std::vector<float> four(4);
  refused([&] { fastdecode::linear({logits.data(), 4}, nullptr, four, 2, 2, 2, four); });
  const std::vector<std::uint8_t> bytes(33);
  const std::vector<float> x(64);
  fastdecode_weights how = {FASTDECODE_WEIGHTS_Q8_0, 0, nullptr, nullptr, 0};
  const std::int64_t token = 0;
  refused([&] { fastdecode::linear({bytes, how}, nullptr, x, 2, 32, 1, four); });
  refused([&] { fastdecode::embed({&token, 1}, {bytes, how}, 1, 32, four); });
  how.type = FASTDECODE_WEIGHTS_INT8;
  refused([&] { fastdecode::linear({bytes, how}, nullptr, x, 2, 16, 2, four); });
  how.type = 9;
  refused([&] { fastdecode::linear({bytes, how}, nullptr, x, 2, 16, 2, four); });
  fastdecode::DecodeStep step({});
  std::vector<float> nothing;
  refused([&] { step.run(nothing, nothing, {}); });
  return 0;
}
