// fastdecode_linear: close to a sum in float64, a row's bits the same alone and among others and on
// any number of threads, and nothing written beside the outputs.

#include "values.h"

namespace fuzz {
namespace {

struct Layer {
  int64_t rows, k, features, out_stride;
  int32_t dtype;
  Exact<uint8_t> weight;
  Exact<float> bias, x;
  const float* bias_pointer;
};

Exact<float> apply(Layer& l, int64_t first, int64_t rows, int32_t threads) {
  // The last row ends with its features.
  Exact<float> out(rows > 0 ? (rows - 1) * l.out_stride + l.features : 0);
  out.fill(77.0f);
  const fastdecode_result result =
      fastdecode_linear(l.weight.get(), l.dtype, l.bias_pointer, l.x.get() + first * l.k, rows, l.k,
                        l.features, out.get(), l.out_stride, threads);
  CHECK(result == FASTDECODE_OK);
  return out;
}

// What x is multiplied as.
float input(const Layer& l, float x) {
  const bool rounds = fastdecode::cpu_isa() == fastdecode::Isa::kAvx512Bf16;
  return rounds && l.dtype == FASTDECODE_BFLOAT16 ? to_bfloat16(x) : x;
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
        const double weight = number(l.dtype, l.weight.get(), f * l.k + i);
        const double term = static_cast<double>(input(l, l.x[r * l.k + i])) * weight;
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

}  // namespace

void fuzz_linear(Bytes& bytes) {
  Layer l;
  l.rows = bytes.in(0, 9);
  l.dtype = static_cast<int32_t>(bytes.in(0, 2));
  const bool wide = bytes.one_in(16);
  l.k = wide ? bytes.in(200, 700) : bytes.in(1, 100);
  l.features = wide ? bytes.in(200, 400) : bytes.in(0, 70);
  l.out_stride = l.features + bytes.of<int64_t>({0, 1, 16});
  Random random(bytes.bits(2));
  l.weight = stored(l.dtype, l.features * l.k, random);
  l.bias = filled(l.features, random);
  l.x = filled(l.rows * l.k, random);
  l.bias_pointer = bytes.one_in(2) ? nullptr : l.bias.get();
  if (bytes.one_in(8)) {
    const bool bad_dtype = bytes.one_in(4);
    const int32_t dtype = bad_dtype ? bytes.of<int32_t>({-1, 3, INT32_MAX, INT32_MIN}) : l.dtype;
    const int64_t k = bad_dtype ? l.k : bytes.of<int64_t>({0, -1, INT64_MIN});
    const int64_t rows = bytes.of<int64_t>({1, -1});
    check_refusal(fastdecode_linear(l.weight.get(), dtype, nullptr, l.x.get(), rows, k, l.features,
                                    nullptr, l.out_stride, 1));
    return;
  }
  note(static_cast<uint64_t>(wide) * 64 + static_cast<uint64_t>(l.rows));
  note(static_cast<uint64_t>(l.dtype));
  for_each_isa([&] { check_linear(bytes, l); });
}

}  // namespace fuzz
