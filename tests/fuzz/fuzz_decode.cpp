// fastdecode_linear and fastdecode_decode_step: a row has the same bits alone and among others, on
// any number of threads, and nothing beside the outputs is written.

#include <memory>

#include "fuzz.h"

namespace fuzz {
namespace {

// Values of small magnitude, all finite.
void fill(Exact<float>& array, Random& random) {
  for (int64_t i = 0; i < array.size(); ++i) {
    array[i] = (static_cast<float>(random.below(4001)) - 2000.0f) / 1024.0f;
  }
}

Exact<float> filled(int64_t n, Random& random) {
  Exact<float> array(n);
  fill(array, random);
  return array;
}

// --- a linear layer

struct Layer {
  int64_t rows, k, features, out_stride;
  Exact<float> weight, bias, x;
  const float* bias_pointer;
};

Exact<float> apply(Layer& l, int64_t first, int64_t rows, int32_t threads) {
  // The last row ends with its features.
  Exact<float> out(rows > 0 ? (rows - 1) * l.out_stride + l.features : 0);
  out.fill(77.0f);
  const fastdecode_result result =
      fastdecode_linear(l.weight.get(), l.bias_pointer, l.x.get() + first * l.k, rows, l.k,
                        l.features, out.get(), l.out_stride, threads);
  CHECK(result == FASTDECODE_OK);
  return out;
}

void check_linear(Bytes& bytes, Layer& l) {
  Exact<float> out = apply(l, 0, l.rows, 1);
  for (int64_t r = 0; r < l.rows; ++r) {
    for (int64_t f = 0; f < l.out_stride && r * l.out_stride + f < out.size(); ++f) {
      const float got = out[r * l.out_stride + f];
      if (f >= l.features) {
        CHECK(got == 77.0f);
        continue;
      }
      double sum = l.bias_pointer != nullptr ? l.bias[f] : 0.0, size = std::fabs(sum);
      for (int64_t i = 0; i < l.k; ++i) {
        const double term = static_cast<double>(l.x[r * l.k + i]) * l.weight[f * l.k + i];
        sum += term;
        size += std::fabs(term);
      }
      CHECK(std::fabs(got - sum) <= 1e-6 * size + 1e-6);
    }
  }
  CHECK(apply(l, 0, l.rows, static_cast<int32_t>(bytes.in(0, 4))).same_bits(out));
  if (l.rows == 0 || l.features == 0) return;
  const int64_t row = bytes.in(0, l.rows - 1);
  Exact<float> alone = apply(l, row, 1, 1);
  CHECK(memcmp(alone.get(), &out[row * l.out_stride], alone.bytes()) == 0);
}

// --- a decode step

struct Model {
  fastdecode_decode_args args;
  std::vector<fastdecode_layer> layers;
  std::vector<std::unique_ptr<Exact<float>>> weights;
  std::vector<int> keys_at;  // of each layer in `weights`; its values follow
  Exact<float> norm, cos, sin, x;
  Exact<int64_t> lengths;

  float* keep(Exact<float> array) {
    weights.push_back(std::make_unique<Exact<float>>(std::move(array)));
    return weights.back()->get();
  }
};

void make_layers(Bytes& bytes, Model& m, Random& random) {
  const fastdecode_decode_args& a = m.args;
  const int64_t queries = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  const bool biased = bytes.one_in(2);
  for (int64_t i = 0; i < a.layer_count; ++i) {
    fastdecode_layer l = {};
    const struct {
      const float **weight, **bias;
      int64_t out, in;
    } parts[] = {{&l.q, &l.q_bias, queries, a.hidden},
                 {&l.k, &l.k_bias, kv, a.hidden},
                 {&l.v, &l.v_bias, kv, a.hidden},
                 {&l.o, &l.o_bias, a.hidden, queries},
                 {&l.gate, &l.gate_bias, a.inner, a.hidden},
                 {&l.up, &l.up_bias, a.inner, a.hidden},
                 {&l.down, &l.down_bias, a.hidden, a.inner}};
    for (const auto& part : parts) {
      *part.weight = m.keep(filled(part.out * part.in, random));
      if (biased) *part.bias = m.keep(filled(part.out, random));
    }
    l.norm_attention = m.keep(filled(a.hidden, random));
    l.norm_mlp = m.keep(filled(a.hidden, random));
    l.qk_weight = m.keep(filled(queries + kv, random));
    l.qk_bias = m.keep(filled(queries + kv, random));
    m.keys_at.push_back(static_cast<int>(m.weights.size()));
    l.keys = m.keep(filled(a.rows * kv * a.slots, random));
    l.values = m.keep(filled(a.rows * kv * a.slots, random));
    m.layers.push_back(l);
  }
  m.args.layers = m.layers.data();
}

void make_model(Bytes& bytes, Model& m) {
  fastdecode_decode_args& a = m.args;
  fastdecode_decode_args_init(&a);
  a.layer_count = bytes.in(0, 2);
  a.hidden = bytes.one_in(8) ? bytes.in(1, 300) : bytes.in(1, 40);
  a.inner = bytes.one_in(8) ? bytes.in(1, 300) : bytes.in(1, 40);
  a.kv_heads = bytes.in(1, 3);
  a.heads = a.kv_heads * bytes.in(1, 3);
  a.head_dim = 2 * (bytes.one_in(4) ? bytes.in(1, 40) : bytes.in(1, 9));
  a.swin = static_cast<int32_t>(bytes.in(0, 1));
  a.scale = 0.3f;
  a.rows = bytes.in(0, 5);
  a.slots = bytes.in(1, 40);
  Random random(bytes.bits(2));
  m.norm = filled(a.hidden, random);
  m.cos = filled(a.rows * a.head_dim, random);
  m.sin = filled(a.rows * a.head_dim, random);
  m.x = filled(a.rows * a.hidden, random);
  m.lengths = Exact<int64_t>(a.rows);
  for (int64_t r = 0; r < a.rows; ++r) m.lengths[r] = bytes.in(0, a.slots - 1);
  make_layers(bytes, m, random);
  a.norm = m.norm.get();
  a.cos = m.cos.get();
  a.sin = m.sin.get();
  a.lengths = m.lengths.get();
}

// Result of a step of `rows` rows from `first` on; keys and values are put back as they were. With
// `stored`, what was written to them comes out too.
Exact<float> step(Model& m, int64_t first, int64_t rows, int32_t threads,
                  std::vector<Exact<float>>* stored = nullptr) {
  const int64_t kv = m.args.kv_heads * m.args.head_dim * m.args.slots;
  fastdecode_decode_args a = m.args;
  Exact<float> x(rows * a.hidden);
  if (rows > 0) memcpy(x.get(), m.x.get() + first * a.hidden, x.bytes());
  std::vector<Exact<float>> caches;
  std::vector<fastdecode_layer> layers = m.layers;
  caches.reserve(2 * layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int part = 0; part < 2; ++part) {
      Exact<float> cache(rows * kv);
      const size_t at = static_cast<size_t>(m.keys_at[i] + part);
      if (rows > 0) memcpy(cache.get(), m.weights[at]->get() + first * kv, cache.bytes());
      caches.push_back(cache);
      (part == 0 ? layers[i].keys : layers[i].values) = caches.back().get();
    }
  }
  a.layers = layers.data();
  a.rows = rows;
  a.threads = threads;
  a.lengths += first;
  a.cos += first * a.head_dim;
  a.sin += first * a.head_dim;
  a.x = x.get();
  CHECK(fastdecode_decode_step(&a) == FASTDECODE_OK);
  if (stored != nullptr) *stored = caches;
  return x;
}

void check_step(Bytes& bytes, Model& m) {
  const fastdecode_decode_args& a = m.args;
  std::vector<Exact<float>> stored;
  Exact<float> out = step(m, 0, a.rows, 1, &stored);
  const int64_t heads = a.rows * a.kv_heads, d = a.head_dim;
  for (size_t i = 0; i < stored.size(); ++i) {  // only the new id's place has changed
    Exact<float>& was = *m.weights[static_cast<size_t>(m.keys_at[i / 2]) + i % 2];
    for (int64_t slot = 0; slot < heads * a.slots; ++slot) {
      if (slot % a.slots == m.lengths[slot / a.slots / a.kv_heads]) continue;
      CHECK(memcmp(&stored[i][slot * d], &was[slot * d], static_cast<size_t>(d) * sizeof(float)) ==
            0);
    }
  }
  CHECK(step(m, 0, a.rows, static_cast<int32_t>(bytes.in(0, 4))).same_bits(out));
  if (a.rows == 0) return;
  const int64_t row = bytes.in(0, a.rows - 1);
  Exact<float> alone = step(m, row, 1, 1);
  CHECK(memcmp(alone.get(), &out[row * a.hidden], alone.bytes()) == 0);
}

// A broken step is refused with nothing written.
void check_broken_step(Bytes& bytes, Model& m) {
  fastdecode_decode_args a = m.args;
  Exact<float> x = m.x;
  a.x = x.get();
  bool broken = true;
  switch (bytes.in(0, 9)) {
    case 0:
      a.head_dim = bytes.of<int64_t>({-1, 0, 1, 3, INT64_MIN});
      break;
    case 1:
      a.kv_heads = bytes.of<int64_t>({0, -1, a.heads + 1, INT64_MIN});
      break;
    case 2:
      a.rows = bytes.of<int64_t>({-1, INT64_MIN});
      break;
    case 3:
      a.norm = nullptr;
      break;
    case 4:
      a.x = nullptr;
      broken = a.rows > 0;
      break;
    case 5:
      if (m.layers.empty()) return;
      m.layers[0].down = nullptr;
      break;
    case 6:
      if (a.rows == 0) return;
      m.lengths[a.rows - 1] = bytes.of<int64_t>({-1, a.slots, INT64_MAX, INT64_MIN});
      break;
    case 7:
      a.size = static_cast<size_t>(bytes.of<int64_t>({0, 8, -1}));
      break;
    case 8:
      a.threads = -1;
      break;
    default:
      a.hidden = bytes.of<int64_t>({0, -1, INT64_MIN});
  }
  if (!broken) return;
  check_refusal(fastdecode_decode_step(&a));
  CHECK(x.same_bits(m.x));
}

}  // namespace

void fuzz_linear(Bytes& bytes) {
  Layer l;
  l.rows = bytes.in(0, 9);
  const bool wide = bytes.one_in(16);  // enough work for threads
  l.k = wide ? bytes.in(200, 700) : bytes.in(1, 100);
  l.features = wide ? bytes.in(200, 400) : bytes.in(0, 70);
  l.out_stride = l.features + bytes.of<int64_t>({0, 1, 16});
  Random random(bytes.bits(2));
  l.weight = filled(l.features * l.k, random);
  l.bias = filled(l.features, random);
  l.x = filled(l.rows * l.k, random);
  l.bias_pointer = bytes.one_in(2) ? nullptr : l.bias.get();
  if (bytes.one_in(8)) {
    const int64_t k = bytes.of<int64_t>({0, -1, INT64_MIN}), rows = bytes.of<int64_t>({1, -1});
    check_refusal(fastdecode_linear(l.weight.get(), nullptr, l.x.get(), rows, k, l.features,
                                    nullptr, l.out_stride, 1));
    return;
  }
  note(static_cast<uint64_t>(wide) * 64 + static_cast<uint64_t>(l.rows));
  for_each_isa([&] { check_linear(bytes, l); });
}

void fuzz_decode_step(Bytes& bytes) {
  Model m;
  make_model(bytes, m);
  if (bytes.one_in(4)) {
    check_broken_step(bytes, m);
    return;
  }
  note(static_cast<uint64_t>(m.args.rows * 4 + m.args.layer_count));
  note(static_cast<uint64_t>(m.args.head_dim));
  for_each_isa([&] { check_step(bytes, m); });
}

}  // namespace fuzz
