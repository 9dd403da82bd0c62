// The operations of a decode step, each as a function of its own.

#include <array>
#include <cstring>

#include "core/apart.h"
#include "cpu/decode_attention.h"
#include "cpu/decode_check.h"
#include "cpu/decode_linear.h"
#include "cpu/decode_rows.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "fastdecode/fastdecode.h"

namespace fastdecode {
namespace {

// Gives `attention` the memory that it works in; false if there is none.
bool give_memory(Attention& attention) {
  static thread_local Memory memory;
  if (attention.floats() > kMaxElements) return false;
  void* found = memory.reserve(attention.floats() * int64_t{sizeof(float)});
  attention.use(static_cast<float*>(found));
  return found != nullptr;
}

fastdecode_result no_memory(int64_t rows) {
  return fail(FASTDECODE_OUT_OF_MEMORY, "no memory for %lld rows", static_cast<long long>(rows));
}

}  // namespace
}  // namespace fastdecode

extern "C" {

fastdecode_result fastdecode_linear(const void* weight, int32_t dtype, const float* bias,
                                    const float* x, int64_t rows, int64_t k, int64_t features,
                                    float* out, int64_t out_stride, int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_dtype(dtype));
  const fastdecode_weights how = dense(dtype);
  return fastdecode_linear_of(weight, &how, bias, x, rows, k, features, out, out_stride, threads);
}

fastdecode_result fastdecode_linear_of(const void* weight, const fastdecode_weights* how,
                                       const float* bias, const float* x, int64_t rows, int64_t k,
                                       int64_t features, float* out, int64_t out_stride,
                                       int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_numbers({{"rows", rows, 0},
                         {"k", k, 1},
                         {"features", features, 0},
                         {"out_stride", out_stride, features, kMaxElements},
                         {"threads", threads, 0}}));
  CHECKED(check_array("weight", {{"features", features}, {"k", k}}));
  CHECKED(check_array("x", {{"rows", rows}, {"k", k}}));
  CHECKED(check_array("out", {{"rows", rows}, {"out_stride", out_stride}}));
  const bool any = rows > 0 && features > 0;
  CHECKED(check_weights("how", how, "k", k, any));
  if (!any) return FASTDECODE_OK;
  CHECKED(check_pointers({{"weight", weight, true}, {"x", x, true}, {"out", out, true}}));
  const std::array<Area, 5> read = {{weight_area(weight, *how, features, k),
                                     scale_area(*how, features, k),
                                     offset_area(*how, features, k),
                                     {"bias", bias, features, 4},
                                     {"x", x, rows * k, 4}}};
  // Row by row: with a larger stride other arrays may lie between the rows of `out`.
  for (int64_t r = 0; r < rows; ++r) {
    CHECKED(check_apart({{"out", out + r * out_stride, features, 4}}, read));
  }
  CHECKED(check_isa());
  const Linear linear = {weight, bias, features, *how};
  if (!run_linears(&linear, 1, x, rows, k, out, out_stride, false, thread_limit(threads))) {
    return no_memory(rows);
  }
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_rms_norm(const float* x, const float* residual, const float* weight,
                                      float epsilon, int64_t rows, int64_t n, float* sum,
                                      float* out, int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_numbers({{"rows", rows, 0}, {"n", n, 1}, {"threads", threads, 0}}));
  CHECKED(check_array("x", {{"rows", rows}, {"n", n}}));
  CHECKED(check_not_negative({{"epsilon", epsilon}}));
  const bool any = rows > 0;
  CHECKED(check_pointers({{"x", x, any}, {"weight", weight, any}, {"out", out, any}}));
  if ((residual == nullptr) != (sum == nullptr) && any) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "%s = NULL: must not be where there is a %s",
                residual == nullptr ? "residual" : "sum", residual == nullptr ? "sum" : "residual");
  }
  const Area written = {"out", out, rows * n, 4}, added = {"sum", sum, rows * n, 4};
  const Area first = {"x", x, rows * n, 4}, second = {"residual", residual, rows * n, 4};
  CHECKED(check_apart({written, added}, {{"weight", weight, n, 4}}));
  // The same array is fine where a row is read before it is written; one that is shifted never is.
  const bool same = out == residual && (out == x || out == sum);
  if (!same) CHECKED(check_apart({written}, {second}));
  if (out != x) CHECKED(check_apart({written}, {first}));
  if (out != sum) CHECKED(check_apart({written}, {added}));
  if (sum != x) CHECKED(check_apart({added}, {first}));
  if (sum != residual) CHECKED(check_apart({added}, {second}));
  CHECKED(check_isa());
  norm_rows({decode_kernels(), x, residual, weight, epsilon, n, sum, out}, rows,
            thread_limit(threads));
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_swiglu(const float* gate_up, int64_t rows, int64_t inner, float* out,
                                    int32_t threads) {
  return fastdecode_glu(gate_up, FASTDECODE_SILU, rows, inner, out, threads);
}

fastdecode_result fastdecode_glu(const float* gate_up, int32_t activation, int64_t rows,
                                 int64_t inner, float* out, int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_activation(activation));
  CHECKED(check_numbers({{"rows", rows, 0}, {"inner", inner, 1}, {"threads", threads, 0}}));
  CHECKED(check_array("gate_up", {{"rows", rows}, {"inner", inner}}));
  CHECKED(check_pointers({{"gate_up", gate_up, rows > 0}, {"out", out, rows > 0}}));
  CHECKED(
      check_apart({{"out", out, rows * inner, 4}}, {{"gate_up", gate_up, rows * 2 * inner, 4}}));
  CHECKED(check_isa());
  gate_rows({decode_kernels(), activation, gate_up, inner, out}, rows, thread_limit(threads));
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_embed(const int64_t* tokens, int64_t rows, const void* weight,
                                   int32_t dtype, int64_t vocab, int64_t hidden, float* out,
                                   int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_dtype(dtype));
  const fastdecode_weights how = dense(dtype);
  return fastdecode_embed_of(tokens, rows, weight, &how, vocab, hidden, out, threads);
}

fastdecode_result fastdecode_embed_of(const int64_t* tokens, int64_t rows, const void* weight,
                                      const fastdecode_weights* how, int64_t vocab, int64_t hidden,
                                      float* out, int32_t threads) {
  using namespace fastdecode;
  CHECKED(check_numbers(
      {{"rows", rows, 0}, {"vocab", vocab, 0}, {"hidden", hidden, 1}, {"threads", threads, 0}}));
  CHECKED(check_array("weight", {{"vocab", vocab}, {"hidden", hidden}}));
  CHECKED(check_array("out", {{"rows", rows}, {"hidden", hidden}}));
  const bool any = rows > 0;
  CHECKED(check_weights("how", how, "hidden", hidden, any && vocab > 0));
  CHECKED(check_pointers(
      {{"tokens", tokens, any}, {"weight", weight, any && vocab > 0}, {"out", out, any}}));
  CHECKED(check_apart({{"out", out, rows * hidden, 4}}, {{"tokens", tokens, rows, 8},
                                                         weight_area(weight, *how, vocab, hidden),
                                                         scale_area(*how, vocab, hidden),
                                                         offset_area(*how, vocab, hidden)}));
  for (int64_t r = 0; r < rows; ++r) {
    if (tokens[r] < 0 || tokens[r] >= vocab) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "tokens[%lld] = %lld: must be a token in [0, %lld)",
                  static_cast<long long>(r), static_cast<long long>(tokens[r]),
                  static_cast<long long>(vocab));
    }
  }
  CHECKED(check_isa());
  embed_rows({decode_kernels(), tokens, weight, *how, hidden, out}, rows, thread_limit(threads));
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_rope_append_args_init_sized(fastdecode_rope_append_args* args,
                                                         size_t size) {
  return fastdecode::set_up(args, size);
}

fastdecode_result fastdecode_rope_append(const fastdecode_rope_append_args* given) {
  using namespace fastdecode;
  Given<fastdecode_rope_append_args> args;
  CHECKED(args.take("args", given));
  const fastdecode_rope_append_args& a = *args;
  CHECKED(check_rope_append_args(a));
  CHECKED(check_isa());
  if (a.rows == 0) return FASTDECODE_OK;
  Attention attention(rows_of(a, 1), decode_kernels(), thread_limit(a.threads));
  if (!give_memory(attention)) return no_memory(a.rows);
  const int64_t queries = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  Heads heads = {};
  heads.keys = a.keys;
  heads.values = a.values;
  heads.q = a.queries;
  heads.q_stride = queries;
  heads.k = a.qkv + queries;
  heads.v = a.qkv + queries + kv;
  heads.kv_stride = queries + 2 * kv;
  heads.q_norm = {a.q_norm, a.q_norm_bias, a.epsilon};
  heads.k_norm = {a.k_norm, a.k_norm_bias, a.epsilon};
  heads.cos = a.cos;
  heads.sin = a.sin;
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memcpy(a.queries + r * queries, a.qkv + r * heads.kv_stride,
                static_cast<size_t>(queries) * sizeof(float));
  }
  attention.place(heads);
  return FASTDECODE_OK;
}

fastdecode_result fastdecode_attend_args_init_sized(fastdecode_attend_args* args, size_t size) {
  return fastdecode::set_up(args, size);
}

fastdecode_result fastdecode_attend(const fastdecode_attend_args* given) {
  using namespace fastdecode;
  Given<fastdecode_attend_args> args;
  CHECKED(args.take("args", given));
  const fastdecode_attend_args& a = *args;
  CHECKED(check_attend_args(a));
  CHECKED(check_isa());
  if (a.rows == 0) return FASTDECODE_OK;
  Attention attention(rows_of(a, 0), decode_kernels(), thread_limit(a.threads));
  if (!give_memory(attention)) return no_memory(a.rows);
  Heads heads = {};
  heads.keys = const_cast<void*>(a.keys);  // only read
  heads.values = const_cast<void*>(a.values);
  heads.q = const_cast<float*>(a.queries);
  heads.q_stride = a.heads * a.head_dim;
  heads.scale = a.scale;
  heads.out = a.out;
  attention.attend(heads);
  return FASTDECODE_OK;
}

}  // extern "C"
