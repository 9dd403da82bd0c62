// fastdecode_linear, fastdecode_linear_of and fastdecode_embed_of, with weights of every type:
// close to a sum in float64, a row's bits the same alone and among others and on any number of
// threads, and nothing read or written beside the arrays. Factors and numbers that are none stay
// where they are: in their feature, or in their row.

#include "weights.h"

namespace fuzz {
namespace {

struct Layer {
  int64_t rows, k, features, out_stride;
  bool wild;  // some factors are infinity or NaN
  Weights weights;
  Exact<float> bias, x;
  const float* bias_pointer;
};

fastdecode_result call(Layer& l, const float* x, int64_t rows, float* out, int32_t threads) {
  const fastdecode_weights how = how_of(l.weights);
  // Both functions, for those that both take.
  if (!is_small(how.type) && threads != 1) {
    return fastdecode_linear(l.weights.data.get(), how.type, l.bias_pointer, x, rows, l.k,
                             l.features, out, l.out_stride, threads);
  }
  return fastdecode_linear_of(l.weights.data.get(), &how, l.bias_pointer, x, rows, l.k, l.features,
                              out, l.out_stride, threads);
}

Exact<float> apply(Layer& l, int64_t first, int64_t rows, int32_t threads) {
  // The last row ends with its features.
  Exact<float> out(rows > 0 ? (rows - 1) * l.out_stride + l.features : 0);
  out.fill(77.0f);
  Exact<float> x(rows * l.k);
  if (x.size() > 0) memcpy(x.get(), l.x.get() + first * l.k, x.bytes());
  CHECK(call(l, x.get(), rows, out.get(), threads) == FASTDECODE_OK);
  return out;
}

// The same bits, or NaN both: of which bits is left open.
bool same(const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (memcmp(a + i, b + i, sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      return false;
    }
  }
  return true;
}

// What a row of x is multiplied as.
std::vector<double> inputs(Layer& l, int64_t row) {
  const float* x = l.x.get() + row * l.k;
  if (is_small(l.weights.how.type)) return rounded_to_int8(x, l.k);
  const bool rounds = fastdecode::cpu_isa() == fastdecode::Isa::kAvx512Bf16 &&
                      l.weights.how.type == FASTDECODE_BFLOAT16;
  std::vector<double> found;
  for (int64_t i = 0; i < l.k; ++i) found.push_back(rounds ? to_bfloat16(x[i]) : x[i]);
  return found;
}

void check_value(Layer& l, const std::vector<double>& x, int64_t f, float got) {
  const bool small = is_small(l.weights.how.type);
  double sum = l.bias_pointer != nullptr ? l.bias[f] : 0.0, size = std::fabs(sum);
  bool row_is_finite = true, feature_is_finite = true;
  for (int64_t i = 0; i < l.k; ++i) {
    const Value weight = value_of(l.weights, f, i);
    const double one = x[static_cast<size_t>(i)];
    row_is_finite = row_is_finite && std::isfinite(one);
    feature_is_finite = feature_is_finite && std::isfinite(weight.scaled + weight.offset);
    sum += one * (weight.scaled + weight.offset);
    size += std::fabs(one) * (std::fabs(weight.scaled) + std::fabs(weight.offset));
  }
  if (small && !row_is_finite) {
    CHECK(std::isnan(got));
  } else if (row_is_finite && feature_is_finite) {
    CHECK(std::fabs(got - sum) <= (small ? 2e-6 * size : 1e-6 * size + 1e-6));
  }
}

void check_linear(Bytes& bytes, Layer& l) {
  Exact<float> out = apply(l, 0, l.rows, 1);
  for (int64_t r = 0; r < l.rows; ++r) {
    const std::vector<double> x = inputs(l, r);
    for (int64_t f = 0; f < l.out_stride && r * l.out_stride + f < out.size(); ++f) {
      const float got = out[r * l.out_stride + f];
      if (f >= l.features) {
        CHECK(got == 77.0f);
      } else {
        check_value(l, x, f, got);
      }
    }
  }
  Exact<float> again = apply(l, 0, l.rows, static_cast<int32_t>(bytes.in(0, 4)));
  CHECK(same(again.get(), out.get(), out.size()));
  if (l.rows == 0 || l.features == 0) return;
  const int64_t row = bytes.in(0, l.rows - 1);
  Exact<float> alone = apply(l, row, 1, 1);
  CHECK(same(alone.get(), &out[row * l.out_stride], alone.size()));
}

// The features as embeddings of tokens.
void check_embed(Bytes& bytes, Layer& l) {
  if (l.features == 0) return;
  Exact<int64_t> tokens(bytes.in(0, 5));
  for (int64_t r = 0; r < tokens.size(); ++r) tokens[r] = bytes.in(0, l.features - 1);
  Exact<float> out(tokens.size() * l.k);
  out.fill(77.0f);
  const fastdecode_weights how = how_of(l.weights);
  CHECK(fastdecode_embed_of(tokens.get(), tokens.size(), l.weights.data.get(), &how, l.features,
                            l.k, out.get(), static_cast<int32_t>(bytes.in(0, 3))) == FASTDECODE_OK);
  for (int64_t r = 0; r < tokens.size(); ++r) {
    for (int64_t i = 0; i < l.k; ++i) {
      const Value weight = value_of(l.weights, tokens[r], i);
      const float scaled = static_cast<float>(weight.scaled);
      const bool added = l.weights.offset.size() > 0;
      const float expected = added ? scaled + static_cast<float>(weight.offset) : scaled;
      CHECK(same(&out[r * l.k + i], &expected, 1));
    }
  }
}

// One fault, which is refused with nothing written.
void check_broken(Bytes& bytes, Layer& l) {
  fastdecode_weights how = how_of(l.weights);
  int64_t k = l.k, rows = bytes.of<int64_t>({1, 3}), stride = l.out_stride;
  const fastdecode_weights* given = &how;
  const void* weight = l.weights.data.get();
  const bool int4 = how.type == FASTDECODE_WEIGHTS_INT4,
             scaled = in_panels(how.type) || how.type == 3;
  const float some[16] = {};
  switch (bytes.in(0, 9)) {
    case 0:
      how.type = bytes.of<int32_t>({-1, 8, INT32_MAX, INT32_MIN});
      break;
    case 1:
      k = bytes.of<int64_t>({0, -1, INT64_MIN, INT64_MAX});
      break;
    case 2:
      rows = bytes.of<int64_t>({-1, INT64_MIN, INT64_MAX});
      break;
    case 3:
      given = nullptr;
      break;
    case 4:
      how.group = int4 ? bytes.of<int32_t>({0, 1, 16, 48, 96, -64, -32, INT32_MIN, INT32_MAX})
                       : bytes.of<int32_t>({1, 32, 64, -1});
      break;
    case 5:
      how.scale = scaled ? nullptr : some;
      if (scaled && l.features == 0) return;
      break;
    case 6:
      if (int4) return;
      how.offset = some;
      break;
    case 7:
      if (block_of(how.type) == 1) return;
      k += bytes.of<int64_t>({1, 16, 31, -1});
      break;
    case 8:
      how.first = in_panels(how.type) ? bytes.of<int64_t>({-1, 16, INT64_MAX, INT64_MIN})
                                      : bytes.of<int64_t>({-1, 1, INT64_MAX, INT64_MIN});
      break;
    default:
      weight = nullptr;
      if (l.features == 0) return;
  }
  Exact<float> out(l.features);
  out.fill(77.0f);
  check_refusal(fastdecode_linear_of(weight, given, nullptr, l.x.get(), rows, k, l.features,
                                     out.get(), stride, 1));
  for (int64_t i = 0; i < out.size(); ++i) CHECK(out[i] == 77.0f);
}

// x: small numbers; for small weights also blocks of far magnitudes, of zeros, infinity and NaN.
Exact<float> make_x(Bytes& bytes, Layer& l, Random& random) {
  Exact<float> x = filled(l.rows * l.k, random);
  if (!is_small(l.weights.how.type) || !bytes.one_in(2)) return x;
  for (int64_t at = 0; at < x.size(); at += 64) {
    const uint64_t kind = random.below(8);
    const int power = static_cast<int>(random.below(160)) - 110;
    const int64_t end = std::min<int64_t>(x.size(), at + 64);
    for (int64_t i = at; i < end; ++i) {
      if (kind < 4) x[i] = std::ldexp(x[i], power);
      if (kind == 4) x[i] = 0.0f;
    }
    if (kind == 5 && random.below(4) == 0) {
      x[at + static_cast<int64_t>(random.below(static_cast<uint64_t>(end - at)))] =
          power % 2 == 0 ? INFINITY : NAN;
    }
  }
  return x;
}

}  // namespace

void fuzz_linear(Bytes& bytes) {
  Layer l;
  l.rows = bytes.in(0, 9);
  const int32_t type = static_cast<int32_t>(bytes.in(0, 7));
  const bool wide = bytes.one_in(16);
  l.k = wide || bytes.one_in(4) ? bytes.in(200, 700) : bytes.in(1, 200);
  l.k = std::max<int64_t>(l.k / block_of(type) * block_of(type), block_of(type));
  l.features = wide ? bytes.in(200, 400) : bytes.in(0, 70);
  l.out_stride = l.features + bytes.of<int64_t>({0, 1, 16});
  l.wild = bytes.one_in(4);
  Random random(bytes.bits(2));
  const int32_t group =
      type == FASTDECODE_WEIGHTS_INT4 ? bytes.of<int32_t>({32, 64, 128, 192, 1 << 20}) : 0;
  l.weights = random_weights(type, group, bytes.one_in(2), l.features, l.k, l.wild, random);
  l.bias = filled(l.features, random);
  l.x = make_x(bytes, l, random);
  l.bias_pointer = bytes.one_in(2) ? nullptr : l.bias.get();
  if (bytes.one_in(8)) return check_broken(bytes, l);
  note(static_cast<uint64_t>(wide) * 64 + static_cast<uint64_t>(l.rows));
  note(static_cast<uint64_t>(type) * 4 + static_cast<uint64_t>(l.wild));
  for_each_isa([&] {
    check_linear(bytes, l);
    check_embed(bytes, l);
  });
}

}  // namespace fuzz
