#include "cpu/decode_rows.h"

#include "core/weights.h"
#include "cpu/decode_linear.h"
#include "cpu/thread_pool.h"

namespace fastdecode {
namespace {

void norm_one(const NormRows& a, int64_t row) {
  const float* x = a.x + row * a.n;
  if (a.residual != nullptr) {
    const float* residual = a.residual + row * a.n;
    float* sum = a.sum + row * a.n;
    for (int64_t i = 0; i < a.n; ++i) sum[i] = x[i] + residual[i];
    x = sum;
  }
  a.kernels.rms_norm(x, a.weight, a.epsilon, a.n, a.out + row * a.n);
}

void gate_one(const GateRows& a, int64_t row) {
  const float* gate = a.gate_up + row * 2 * a.inner;
  a.kernels.gate[a.activation](gate, gate + a.inner, a.inner, a.out + row * a.inner);
}

void embed_one(const EmbedRows& a, int64_t row) {
  float* out = a.out + row * a.n;
  if (kWeightTypes[a.how.type].small) {
    small_weights(a.weight, a.how, a.tokens[row], a.n, out);
    return;
  }
  const int64_t begin = a.tokens[row] * bytes_of_feature(a.how.type, a.n);
  a.kernels.widen[a.how.type](static_cast<const char*>(a.weight) + begin, a.n, out);
}

// `work`: the cost of a row, in multiplications.
template <typename Args, void (*one)(const Args&, int64_t)>
void share(const Args& args, int64_t rows, int64_t work, int threads) {
  parallel_for(
      rows, useful_threads(0.0, static_cast<double>(rows) * static_cast<double>(work), threads),
      [](void* of, int64_t row) { one(*static_cast<const Args*>(of), row); },
      const_cast<Args*>(&args));
}

}  // namespace

void norm_rows(const NormRows& args, int64_t rows, int threads) {
  share<NormRows, norm_one>(args, rows, args.n * 4, threads);
}

void gate_rows(const GateRows& args, int64_t rows, int threads) {
  share<GateRows, gate_one>(args, rows, args.inner * 16, threads);
}

void embed_rows(const EmbedRows& args, int64_t rows, int threads) {
  share<EmbedRows, embed_one>(args, rows, args.n * 4, threads);
}

}  // namespace fastdecode
