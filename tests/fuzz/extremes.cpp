// Every integer of every call at extreme values: none crashes, hangs or overflows, and what is
// refused is refused with a message that names a field that was changed. First come pairs of sizes
// that are too large together. Arguments: seed, number of calls.

#include "extremes.h"

namespace {

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

void sample(Change& change) {
  Sampling own(!change.product.empty() || change.random.below(2) == 0);
  change_and_call(change, own.fields(), [&] { return fastdecode_sample(&own.args); });
}

void advance(Change& change) {
  Advancing own;
  change_and_call(change, own.fields(true), [&] { return fastdecode_advance(&own.args); });
}

void sample_advance(Change& change) {
  Sampling sampling(true);
  Advancing advancing;
  std::vector<Field> fields = sampling.fields();
  const std::vector<Field> others = advancing.fields(false);
  fields.insert(fields.end(), others.begin(), others.end());
  change_and_call(change, fields,
                  [&] { return fastdecode_sample_advance(&sampling.args, &advancing.args); });
}

void decode_step(Change& change) {
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
  fields.push_back(field("stores_only", Kind::kNumber, args.stores_only));
  fields.push_back(field("swin", Kind::kNumber, args.swin));
  fields.push_back(field("activation", Kind::kNumber, args.activation));
  change_and_call(change, fields, [&] { return fastdecode_decode_step(&args); });
}

void rope_append(Change& change) {
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
  change_and_call(change, fields, [&] { return fastdecode_rope_append(&args); });
}

void attend(Change& change) {
  Decoding own;
  fastdecode_attend_args args;
  CHECK(fastdecode_attend_args_init(&args) == FASTDECODE_OK);
  const std::vector<Field> fields = own.common(args);
  args.queries = own.queries.data();
  args.keys = own.keys.data();
  args.values = own.values.data();
  args.out = own.out.data();
  change_and_call(change, fields, [&] { return fastdecode_attend(&args); });
}

// The functions that take sizes one by one.
struct Plain {
  const std::vector<float> x = std::vector<float>(kTwo * 8, 0.5f),
                           weight = std::vector<float>(128, 0.1f);
  std::vector<float> out = std::vector<float>(kTwo * 8);
  int64_t rows = kTwo, n = 8, features = 8, stride = 8, vocab = 8;
  int32_t threads = 1, dtype = FASTDECODE_FLOAT32;
  fastdecode_weights how = {FASTDECODE_WEIGHTS_INT8, 0, nullptr, nullptr, 0};

  std::vector<Field> fields(std::initializer_list<Field> more) {
    std::vector<Field> all = {field("rows", Kind::kCount, rows),
                              field("threads", Kind::kThreads, threads)};
    all.insert(all.end(), more);
    return all;
  }
};

void linear(Change& change) {
  Plain own;
  const std::vector<Field> fields = own.fields(
      {field("k", Kind::kCount, own.n), field("features", Kind::kCount, own.features),
       field("out_stride", Kind::kStride, own.stride), field("dtype", Kind::kNumber, own.dtype)});
  change_and_call(change, fields, [&] {
    return fastdecode_linear(own.weight.data(), own.dtype, nullptr, own.x.data(), own.rows, own.n,
                             own.features, own.out.data(), own.stride, own.threads);
  });
}

// Of small weights: int4, or int8 with sizes that are no multiples of 32.
Field type_field(int32_t& at) {
  Field type = field("how.type", Kind::kNumber, at);
  type.instead = "weights";  // a group or a factor that another type must not have
  return type;
}

void set_small(Change& change, Plain& own) {
  own.how.scale = own.weight.data();
  if (change.random.below(2) == 0) return;
  own.n = 32;
  own.features = own.stride = own.vocab = 2;
  own.how = {FASTDECODE_WEIGHTS_INT4, 32, own.weight.data(), own.weight.data(), 0};
}

void linear_of(Change& change) {
  Plain own;
  set_small(change, own);
  const std::vector<float> x(64, 0.5f);
  std::vector<Field> fields =
      own.fields({field("k", Kind::kCount, own.n), field("features", Kind::kCount, own.features),
                  field("out_stride", Kind::kStride, own.stride), type_field(own.how.type),
                  field("how.group", Kind::kNumber, own.how.group),
                  field("how.first", Kind::kNumber, own.how.first)});
  change_and_call(change, fields, [&] {
    return fastdecode_linear_of(own.weight.data(), &own.how, nullptr, x.data(), own.rows, own.n,
                                own.features, own.out.data(), own.stride, own.threads);
  });
}

void rms_norm(Change& change) {
  Plain own;
  change_and_call(change, own.fields({field("n", Kind::kCount, own.n)}), [&] {
    return fastdecode_rms_norm(own.x.data(), nullptr, own.weight.data(), 1e-5f, own.rows, own.n,
                               nullptr, own.out.data(), own.threads);
  });
}

void swiglu(Change& change) {
  Plain own;
  own.n = 4;
  change_and_call(change, own.fields({field("inner", Kind::kCount, own.n)}), [&] {
    return fastdecode_swiglu(own.x.data(), own.rows, own.n, own.out.data(), own.threads);
  });
}

void glu(Change& change) {
  Plain own;
  own.n = 4;
  int32_t activation = FASTDECODE_GELU_TANH;
  const std::vector<Field> fields = own.fields(
      {field("inner", Kind::kCount, own.n), field("activation", Kind::kNumber, activation)});
  change_and_call(change, fields, [&] {
    return fastdecode_glu(own.x.data(), activation, own.rows, own.n, own.out.data(), own.threads);
  });
}

void embed(Change& change) {
  Plain own;
  const std::vector<int64_t> tokens = {0, 1};
  const std::vector<Field> fields = own.fields(
      {field("hidden", Kind::kCount, own.n), field("vocab", Kind::kCount, own.vocab, "tokens[")});
  change_and_call(change, fields, [&] {
    return fastdecode_embed(tokens.data(), own.rows, own.weight.data(), own.dtype, own.vocab, own.n,
                            own.out.data(), own.threads);
  });
}

void embed_of(Change& change) {
  Plain own;
  set_small(change, own);
  const std::vector<int64_t> tokens = {0, 1};
  std::vector<float> out(64);
  const std::vector<Field> fields = own.fields(
      {field("hidden", Kind::kCount, own.n), field("vocab", Kind::kCount, own.vocab, "tokens["),
       type_field(own.how.type), field("how.group", Kind::kNumber, own.how.group),
       field("how.first", Kind::kNumber, own.how.first)});
  change_and_call(change, fields, [&] {
    return fastdecode_embed_of(tokens.data(), own.rows, own.weight.data(), &own.how, own.vocab,
                               own.n, out.data(), own.threads);
  });
}

constexpr void (*kCalls[])(Change&) = {
    sample,   advance, sample_advance, decode_step, rope_append, attend, linear,
    rms_norm, swiglu,  embed,          linear_of,   embed_of,    glu};

// Two sizes of an array, and one that must not be smaller than one of them.
struct Product {
  void (*call)(Change&);
  const char *one, *other, *bound = nullptr;
};
constexpr Product kProducts[] = {{sample, "rows", "row_stride"},
                                 {sample, "groups", "noise_stride"},
                                 {sample, "groups", "streams"},
                                 {advance, "groups", "streams"},
                                 {advance, "groups", "capacity"},
                                 {advance, "modes", "classes"},
                                 {decode_step, "rows", "hidden"},
                                 {decode_step, "rows", "inner"},
                                 {decode_step, "inner", "hidden"},
                                 {decode_step, "heads", "hidden"},
                                 {decode_step, "pages", "page_slots"},
                                 {rope_append, "rows", "table_stride"},
                                 {rope_append, "rows", "heads"},
                                 {rope_append, "pages", "head_dim"},
                                 {attend, "rows", "head_dim"},
                                 {attend, "pages", "page_slots"},
                                 {linear, "features", "k", "out_stride"},
                                 {linear, "rows", "k"},
                                 {linear, "rows", "out_stride"},
                                 {linear_of, "features", "k", "out_stride"},
                                 {linear_of, "rows", "k"},
                                 {linear_of, "rows", "out_stride"},
                                 {embed_of, "vocab", "hidden"},
                                 {embed_of, "rows", "hidden"},
                                 {rms_norm, "rows", "n"},
                                 {swiglu, "rows", "inner"},
                                 {glu, "rows", "inner"},
                                 {embed, "vocab", "hidden"},
                                 {embed, "rows", "hidden"}};

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 3);
  for (const Product& product : kProducts) {
    Change change = {{0}, {product.one, product.other}};
    if (product.bound != nullptr) change.product.push_back(product.bound);
    product.call(change);
  }
  Change change = {{strtoull(arguments[1], nullptr, 10)}, {}};
  const long calls = strtol(arguments[2], nullptr, 10);
  for (long i = 0; i < calls; ++i) kCalls[change.random.below(std::size(kCalls))](change);
  printf("products %zu, calls %ld\n", std::size(kProducts), calls);
  return 0;
}
