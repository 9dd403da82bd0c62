// Every integer of every call at extreme values: none crashes, hangs or overflows, and what is
// refused is refused with a message that names a field that was changed. Arguments: seed, number of
// calls.

#include <string>

#include "fuzz.h"

namespace {

// What a field may be.
enum class Kind {
  kCount,    // at least 0 or 1, and at most 2^31 - 1
  kStride,   // at least 0; too large where two rows would have more than 2^47 elements
  kNumber,   // anything
  kThreads,  // not negative
};

struct Field {
  std::string name, instead;  // what a message names: the field, or a value that it makes wrong
  Kind kind;
  int64_t* wide;
  int32_t* narrow;
};

Field field(const char* name, Kind kind, int64_t& at, const char* instead = nullptr) {
  return {name, instead != nullptr ? instead : name, kind, &at, nullptr};
}
Field field(const char* name, Kind kind, int32_t& at) {
  return {name, name, kind, nullptr, &at};
}

constexpr int64_t kValues[] = {INT64_MIN + 1,
                               -(INT64_C(1) << 32),
                               -2,
                               -1,
                               0,
                               INT64_C(1) << 31,
                               INT64_C(1) << 32,
                               (INT64_C(1) << 32) + 1,
                               INT64_C(1) << 47,
                               INT64_C(1) << 61,
                               (INT64_C(1) << 61) + 1,
                               INT64_C(1) << 62,
                               INT64_MAX - 1,
                               INT64_MAX};
constexpr int32_t kNarrowValues[] = {INT32_MIN, -1, 0, INT32_MAX};

struct Random {
  uint64_t state;
  uint64_t below(uint64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % n;
  }
};

// Sets `field` to an extreme value, which must be refused if this returns true.
bool set_extreme(Random& random, const Field& field, bool& zero) {
  if (field.narrow != nullptr) {
    const int32_t value = kNarrowValues[random.below(std::size(kNarrowValues))];
    *field.narrow = value;
    return field.kind == Kind::kThreads && value < 0;
  }
  int64_t value = kValues[random.below(std::size(kValues))];
  // A smaller stride is a good one, if only the arrays were as long.
  if (field.kind == Kind::kStride && value > 0) value |= INT64_C(1) << 47;
  *field.wide = value;
  zero = zero || value == 0;
  return field.kind == Kind::kCount ? value != 0 : field.kind == Kind::kStride && value != 0;
}

// Changes one to three of the fields and calls. The caller's arguments are then dropped.
template <typename Call>
void change_and_call(Random& random, const std::vector<Field>& fields, Call call) {
  std::vector<std::string> changed, named;
  bool refused = false, zero = false;
  for (uint64_t n = 1 + random.below(3); n > 0; --n) {
    const Field& one = fields[random.below(fields.size())];
    if (std::find(changed.begin(), changed.end(), one.name) != changed.end()) continue;
    changed.push_back(one.name);
    named.insert(named.end(), {one.name, one.instead});
    refused |= set_extreme(random, one, zero);
  }
  const fastdecode_result result = call();
  CHECK(result == FASTDECODE_OK || result == FASTDECODE_INVALID_ARGUMENT ||
        result == FASTDECODE_OUT_OF_MEMORY);
  if (refused && !zero) CHECK(result == FASTDECODE_INVALID_ARGUMENT);
  if (result == FASTDECODE_OK) return;
  const std::string said = fastdecode_last_error();
  for (const std::string& name : named) {
    if (said.find(name) != std::string::npos) return;
  }
  fprintf(stderr, "changed %s: \"%s\" does not name it\n", changed[0].c_str(), said.c_str());
  abort();
}

constexpr int64_t kTwo = 2, kVocab = 64;

struct Sampling {
  std::vector<float> logits = std::vector<float>(kTwo * kVocab, 0.5f), noise = logits;
  std::vector<int64_t> token = std::vector<int64_t>(kTwo);
  std::vector<float> logprob = std::vector<float>(kTwo);
  std::vector<int32_t> kept = std::vector<int32_t>(kTwo), status = kept;
  std::vector<int32_t> streams = {0, 1}, ranges = {0, 9, 12, 64}, offsets = {0, 2}, index = {0, 0};
  fastdecode_sample_args args;

  explicit Sampling(bool arrays) {
    CHECK(fastdecode_sample_args_init(&args) == FASTDECODE_OK);
    args.logits = logits.data();
    args.rows = args.groups = kTwo;
    args.vocab = args.row_stride = args.noise_stride = kVocab;
    args.noise = noise.data();
    args.token = token.data();
    args.logprob = logprob.data();
    args.kept = kept.data();
    args.status = status.data();
    if (!arrays) return;
    args.streams = streams.data();
    args.ranges = ranges.data();
    args.set_offsets = offsets.data();
    args.sets = 1;
  }
  std::vector<Field> fields() {
    return {field("rows", Kind::kCount, args.rows, "must be a row in"),
            field("vocab", Kind::kCount, args.vocab),
            field("row_stride", Kind::kStride, args.row_stride),
            field("groups", Kind::kCount, args.groups),
            field("streams", Kind::kCount, args.streams_per_group),
            field("sets", Kind::kCount, args.sets, "set_of"),
            field("noise_stride", Kind::kStride, args.noise_stride),
            field("threads", Kind::kThreads, args.threads),
            field("top_k", Kind::kNumber, args.top_k_value),
            field("contrast_k", Kind::kNumber, args.contrast_k),
            field("dtype", Kind::kNumber, args.dtype),
            field("seed", Kind::kNumber, args.seed_value),
            field("step", Kind::kNumber, args.step_value)};
  }
};

struct Advancing {
  std::vector<int32_t> set_of = {0}, forced = {-1}, following = {0}, classes = {0, 64, 0};
  std::vector<int32_t> mode = {0, 0}, seen = std::vector<int32_t>(kTwo * 2);
  std::vector<int64_t> token = {1, 2}, step = {0, 0}, inputs = {0, 0}, lengths = {0, 0};
  std::vector<int64_t> sequences = std::vector<int64_t>(kTwo * 4);
  std::vector<uint8_t> finished = {0, 0};
  fastdecode_advance_args args;

  Advancing() {
    CHECK(fastdecode_advance_args_init(&args) == FASTDECODE_OK);
    args.grammar.modes = args.grammar.classes = args.grammar.class_range_count = 1;
    args.grammar.set_of = set_of.data();
    args.grammar.forced = forced.data();
    args.grammar.following = following.data();
    args.grammar.class_ranges = classes.data();
    args.groups = args.rows = kTwo;
    args.vocab = kVocab;
    args.token = token.data();
    args.mode = mode.data();
    args.step = step.data();
    args.finished = finished.data();
    args.inputs = inputs.data();
    args.lengths = lengths.data();
    args.seen = seen.data();
    args.sequences = sequences.data();
    args.capacity = 4;
  }
  std::vector<Field> fields(bool alone) {
    std::vector<Field> all = {field("modes", Kind::kCount, args.grammar.modes),
                              field("classes", Kind::kCount, args.grammar.classes),
                              field("class_range", Kind::kCount, args.grammar.class_range_count)};
    all.push_back(field("capacity", Kind::kStride, args.capacity, "step["));
    if (!alone) return all;
    all.push_back(field("groups", Kind::kCount, args.groups));
    all.push_back(field("rows", Kind::kCount, args.rows));
    all.push_back(field("streams", Kind::kCount, args.streams_per_group));
    all.push_back(field("vocab", Kind::kCount, args.vocab));
    return all;
  }
};

// A layer of everything that a step reads, and the rows of rope_append and attend.
struct Decoding {
  std::vector<float> weights = std::vector<float>(64, 0.1f), ones = std::vector<float>(8, 1.0f);
  std::vector<float> keys = std::vector<float>(2 * 4 * 4), values = keys;
  std::vector<float> cos = std::vector<float>(kTwo * 4, 1.0f), sin = cos;
  std::vector<float> x = std::vector<float>(kTwo * 8, 0.5f);
  std::vector<float> qkv = std::vector<float>(kTwo * 4 * 4, 0.5f), queries = qkv, out = qkv;
  std::vector<int32_t> table = {0, 1};
  std::vector<int64_t> lengths = {1, 1};
  fastdecode_layer layer = {};

  template <typename Args>
  std::vector<Field> common(Args& args) {
    args.heads = 2;
    args.kv_heads = 1;
    args.head_dim = 4;
    args.pages = 2;
    args.page_slots = 4;
    args.table = table.data();
    args.table_stride = args.table_width = 1;
    args.rows = kTwo;
    args.lengths = lengths.data();
    return {field("rows", Kind::kCount, args.rows, "must be a row in"),
            field("heads", Kind::kCount, args.heads),
            field("kv_heads", Kind::kCount, args.kv_heads),
            field("head_dim", Kind::kCount, args.head_dim),
            field("pages", Kind::kCount, args.pages, "table["),
            field("page_slots", Kind::kCount, args.page_slots),
            field("table_stride", Kind::kStride, args.table_stride),
            field("table_width", Kind::kCount, args.table_width),
            field("threads", Kind::kThreads, args.threads),
            field("dtype", Kind::kNumber, args.dtype)};
  }
};

void sample(Random& random) {
  Sampling own(random.below(2) == 0);
  change_and_call(random, own.fields(), [&] { return fastdecode_sample(&own.args); });
}

void advance(Random& random) {
  Advancing own;
  change_and_call(random, own.fields(true), [&] { return fastdecode_advance(&own.args); });
}

void sample_advance(Random& random) {
  Sampling sampling(true);
  Advancing advancing;
  std::vector<Field> fields = sampling.fields();
  const std::vector<Field> others = advancing.fields(false);
  fields.insert(fields.end(), others.begin(), others.end());
  change_and_call(random, fields,
                  [&] { return fastdecode_sample_advance(&sampling.args, &advancing.args); });
}

void decode_step(Random& random) {
  Decoding own;
  fastdecode_decode_args args;
  CHECK(fastdecode_decode_args_init(&args) == FASTDECODE_OK);
  std::vector<Field> fields = own.common(args);
  fastdecode_layer& l = own.layer;
  l.q = l.k = l.v = l.o = l.gate = l.up = l.down = own.weights.data();
  l.norm_attention = l.norm_mlp = args.norm = own.ones.data();
  l.keys = own.keys.data();
  l.values = own.values.data();
  args.layers = &l;
  args.layer_count = 1;
  args.hidden = args.inner = 8;
  args.scale = 0.5f;
  args.cos = own.cos.data();
  args.sin = own.sin.data();
  args.x = own.x.data();
  fields.push_back(field("layer_count", Kind::kCount, args.layer_count));
  fields.push_back(field("hidden", Kind::kCount, args.hidden));
  fields.push_back(field("inner", Kind::kCount, args.inner));
  fields.push_back(field("chained", Kind::kNumber, args.chained));
  fields.push_back(field("swin", Kind::kNumber, args.swin));
  change_and_call(random, fields, [&] { return fastdecode_decode_step(&args); });
}

void rope_append(Random& random) {
  Decoding own;
  fastdecode_rope_append_args args;
  CHECK(fastdecode_rope_append_args_init(&args) == FASTDECODE_OK);
  const std::vector<Field> fields = own.common(args);
  args.qkv = own.qkv.data();
  args.cos = own.cos.data();
  args.sin = own.sin.data();
  args.keys = own.keys.data();
  args.values = own.values.data();
  args.queries = own.queries.data();
  change_and_call(random, fields, [&] { return fastdecode_rope_append(&args); });
}

void attend(Random& random) {
  Decoding own;
  fastdecode_attend_args args;
  CHECK(fastdecode_attend_args_init(&args) == FASTDECODE_OK);
  const std::vector<Field> fields = own.common(args);
  args.queries = own.queries.data();
  args.keys = own.keys.data();
  args.values = own.values.data();
  args.out = own.out.data();
  change_and_call(random, fields, [&] { return fastdecode_attend(&args); });
}

void functions(Random& random) {
  const std::vector<float> x(kTwo * 8, 0.5f), weight(64, 0.1f);
  std::vector<float> out(kTwo * 8);
  const std::vector<int64_t> tokens = {0, 1};
  int64_t rows = kTwo, n = 8, features = 8, stride = 8, vocab = 8;
  int32_t threads = 1, dtype = FASTDECODE_FLOAT32;
  std::vector<Field> fields = {field("rows", Kind::kCount, rows),
                               field("threads", Kind::kThreads, threads)};
  switch (random.below(4)) {
    case 0:
      fields.push_back(field("k", Kind::kCount, n));
      fields.push_back(field("features", Kind::kCount, features));
      fields.push_back(field("out_stride", Kind::kStride, stride));
      fields.push_back(field("dtype", Kind::kNumber, dtype));
      return change_and_call(random, fields, [&] {
        return fastdecode_linear(weight.data(), dtype, nullptr, x.data(), rows, n, features,
                                 out.data(), stride, threads);
      });
    case 1:
      fields.push_back(field("n", Kind::kCount, n));
      return change_and_call(random, fields, [&] {
        return fastdecode_rms_norm(x.data(), nullptr, weight.data(), 1e-5f, rows, n, nullptr,
                                   out.data(), threads);
      });
    case 2:
      n = 4;
      fields.push_back(field("inner", Kind::kCount, n));
      return change_and_call(random, fields, [&] {
        return fastdecode_swiglu(x.data(), rows, n, out.data(), threads);
      });
    default:
      fields.push_back(field("hidden", Kind::kCount, n));
      fields.push_back(field("vocab", Kind::kCount, vocab, "tokens["));
      return change_and_call(random, fields, [&] {
        return fastdecode_embed(tokens.data(), rows, weight.data(), dtype, vocab, n, out.data(),
                                threads);
      });
  }
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 3);
  Random random = {strtoull(arguments[1], nullptr, 10)};
  const long calls = strtol(arguments[2], nullptr, 10);
  void (*const of[])(Random&) = {sample,      advance, sample_advance, decode_step,
                                 rope_append, attend,  functions};
  for (long i = 0; i < calls; ++i) of[random.below(std::size(of))](random);
  printf("calls %ld\n", calls);
  return 0;
}
