// linear, embed, rms_norm, add_rms_norm, swiglu, rope_append and attend. The checks are those of
// the functions in fastdecode/ops.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "torch/operations.h"

namespace fastdecode::torch_ops {
namespace {

// Pages of keys and values with a page table, as fastdecode/ops/pages.py checks them.
struct Pages {
  int32_t dtype;
  Tensor table, lengths;
  int64_t table_stride;
};

Pages check_pages(const Tensor& keys, const Tensor& values, const Tensor& table,
                  const Tensor& lengths, int64_t rows, const char* like) {
  const char* layout = "pages, kv_heads, page_slots, head_dim";
  const int32_t dtype = check_stored("keys", keys, layout, like);
  check_stored("values", values, layout, like);
  const Shape shape = shape_of(keys);
  if (shape[1] == 0 || shape[2] == 0 || shape[3] == 0) {
    refuse("keys.shape = ", text_of(shape), ": must be (", layout, ")");
  }
  if (shape_of(values) != shape) {
    refuse("values.shape = ", text_of(shape_of(values)), ": must be ", text_of(shape),
           ", as for keys");
  }
  if (values.scalar_type() != keys.scalar_type()) {
    refuse("values.dtype = ", text_of(values.scalar_type()), ": must be ",
           text_of(keys.scalar_type()), ", as for keys");
  }
  if (table.dim() != 2 || table.size(0) != rows) {
    refuse("table.shape = ", text_of(shape_of(table)), ": must be (", rows,
           ", pages of the longest row)");
  }
  const int64_t width = table.size(1);
  if (width > 1 && table.stride(1) != 1) {
    refuse("table.stride(1) = ", table.stride(1), ": must be 1");
  }
  if (table.scalar_type() != ScalarType::Int) {
    refuse("table.dtype = ", text_of(table.scalar_type()), ": must be torch.int32");
  }
  check_device("table", table, like);
  // Rows may lie apart; only those that overlap are copied.
  const bool overlap = rows > 1 && table.stride(0) < width;
  const Tensor used =
      overlap ? check_tensor("table", table, {rows, width}, ScalarType::Int, like) : table;
  return {dtype, used, check_tensor("lengths", lengths, {rows}, ScalarType::Long, like),
          std::max(used.stride(0), width)};
}

// The arguments that fastdecode_rope_append_args and fastdecode_attend_args share.
template <typename Args>
void set_rows(Args* args, int64_t rows, int64_t heads, const Pages& pages, const Tensor& keys) {
  args->rows = rows;
  args->heads = heads;
  args->dtype = pages.dtype;
  args->threads = threads();
  args->kv_heads = keys.size(1);
  args->head_dim = keys.size(3);
  args->pages = keys.size(0);
  args->page_slots = keys.size(2);
  args->table = read<int32_t>(pages.table);
  args->table_stride = pages.table_stride;
  args->table_width = pages.table.size(1);
  args->lengths = read<int64_t>(pages.lengths);
}

// The weight or bias of a norm of each head: (heads, head_dim), or one row for all heads.
MaybeTensor check_head_norm(const std::string& name, const MaybeTensor& given, int64_t heads,
                            int64_t head_dim) {
  if (!given) return std::nullopt;
  if (given->dim() != 1 || given->size(0) != head_dim) {
    return check_tensor(name.c_str(), *given, {heads, head_dim}, ScalarType::Float, "qkv");
  }
  const Tensor row = check_tensor(name.c_str(), *given, {head_dim}, ScalarType::Float, "qkv");
  const Tensor all = new_tensor({heads, head_dim}, ScalarType::Float);
  for (int64_t head = 0; head < heads; ++head) {
    std::memcpy(written<float>(all) + head * head_dim, read<float>(row), head_dim * sizeof(float));
  }
  return all;
}

void check_has_weight(const char* name, const MaybeTensor& weight, const MaybeTensor& bias) {
  if (!weight && bias) refuse(name, " = None: must not be where there is a ", name, "_bias");
}

// The fastdecode_activation of a name.
int32_t activation_of(const std::string& name) {
  const char* names[] = {"silu", "gelu_tanh", "gelu"};
  for (int32_t i = 0; i < 3; ++i) {
    if (name == names[i]) return i;
  }
  refuse("activation = '", name, "': must be 'silu', 'gelu_tanh' or 'gelu'");
}

}  // namespace

Tensor linear(Tensor given, Tensor weight, MaybeTensor bias, MaybeTensor scale,
              MaybeString backend) {
  check_backend(backend);
  const Tensor x = check_floats("x", given, "rows, k");
  const int32_t dtype = check_stored("weight", weight, "features, k", "x");
  const int64_t rows = x.size(0), k = x.size(1), features = weight.size(0);
  if (weight.size(1) != k) {
    refuse("weight.shape = ", text_of(shape_of(weight)), ": must be (features, ", k, ")");
  }
  const MaybeTensor added = check_tensor("bias", bias, {features}, ScalarType::Float, "x");
  if (scale) {
    refuse("scale: is for weights of int8 or float8_e4m3fn, not of ",
           text_of(weight.scalar_type()));
  }
  const Tensor out = new_tensor({rows, features}, ScalarType::Float);
  require(fastdecode_linear(weight.const_data_ptr(), dtype, read<float>(added), read<float>(x),
                            rows, k, features, written<float>(out), features, threads()));
  return out;
}

Tensor embed(Tensor given, Tensor weight, MaybeString backend) {
  check_backend(backend);
  if (given.dim() != 1 || given.scalar_type() != ScalarType::Long || !given.is_cpu()) {
    refuse("tokens: must be (rows,) int64, got ", described(given));
  }
  const int32_t dtype = check_stored("weight", weight, "vocab, hidden", "tokens");
  const int64_t rows = given.size(0), vocab = weight.size(0), hidden = weight.size(1);
  if (hidden == 0) {
    refuse("weight.shape = ", text_of(shape_of(weight)), ": must be (vocab, hidden)");
  }
  const Tensor tokens = check_tensor("tokens", given, {rows}, ScalarType::Long, "tokens");
  const Tensor out = new_tensor({rows, hidden}, ScalarType::Float);
  require(fastdecode_embed(read<int64_t>(tokens), rows, weight.const_data_ptr(), dtype, vocab,
                           hidden, written<float>(out), threads()));
  return out;
}

Tensor rms_norm(Tensor given, Tensor weight, double epsilon, MaybeString backend) {
  check_backend(backend);
  const Tensor x = check_floats("x", given, "rows, n");
  const int64_t rows = x.size(0), n = x.size(1);
  const Tensor factors = check_tensor("weight", weight, {n}, ScalarType::Float, "x");
  const Tensor out = new_tensor({rows, n}, ScalarType::Float);
  require(fastdecode_rms_norm(read<float>(x), nullptr, read<float>(factors),
                              static_cast<float>(epsilon), rows, n, nullptr, written<float>(out),
                              threads()));
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm(Tensor given, Tensor residual, Tensor weight,
                                        double epsilon, MaybeString backend) {
  check_backend(backend);
  const Tensor x = check_floats("x", given, "rows, n");
  const int64_t rows = x.size(0), n = x.size(1);
  const Tensor factors = check_tensor("weight", weight, {n}, ScalarType::Float, "x");
  const Tensor added = check_tensor("residual", residual, {rows, n}, ScalarType::Float, "x");
  const Tensor out = new_tensor({rows, n}, ScalarType::Float);
  const Tensor sum = new_tensor({rows, n}, ScalarType::Float);
  require(fastdecode_rms_norm(read<float>(x), read<float>(added), read<float>(factors),
                              static_cast<float>(epsilon), rows, n, written<float>(sum),
                              written<float>(out), threads()));
  return {out, sum};
}

Tensor swiglu(Tensor given, std::string activation, MaybeString backend) {
  check_backend(backend);
  const int32_t number = activation_of(activation);
  const Tensor gate_up = check_floats("gate_up", given, "rows, 2 * inner");
  const int64_t rows = gate_up.size(0), width = gate_up.size(1);
  if (width % 2 != 0) {
    refuse("gate_up.shape = ", text_of(shape_of(gate_up)), ": must be (rows, 2 * inner)");
  }
  const Tensor out = new_tensor({rows, width / 2}, ScalarType::Float);
  require(fastdecode_glu(read<float>(gate_up), number, rows, width / 2, written<float>(out),
                         threads()));
  return out;
}

Tensor rope_append(Tensor given, Tensor cos, Tensor sin, Tensor keys, Tensor values, Tensor table,
                   Tensor lengths, MaybeTensor q_norm, MaybeTensor q_norm_bias, MaybeTensor k_norm,
                   MaybeTensor k_norm_bias, double epsilon, MaybeString backend) {
  check_backend(backend);
  const Tensor qkv = check_floats("qkv", given, "rows, (heads + 2 * kv_heads) * head_dim");
  const int64_t rows = qkv.size(0), width = qkv.size(1);
  const Pages pages = check_pages(keys, values, table, lengths, rows, "qkv");
  const int64_t kv_heads = keys.size(1), head_dim = keys.size(3);
  const int64_t heads = width / head_dim - 2 * kv_heads;
  if (head_dim % 2 != 0) {
    refuse("keys.shape = ", text_of(shape_of(keys)), ": head_dim must be even");
  }
  if (width % head_dim != 0 || heads < 1 || heads % kv_heads != 0) {
    refuse("qkv.shape = ", text_of(shape_of(qkv)), ": must be (rows, (heads + ", 2 * kv_heads,
           ") * ", head_dim, ") with heads a multiple of ", kv_heads);
  }
  const Shape rotation = {rows, head_dim};
  const Tensor cosines = check_tensor("cos", cos, rotation, ScalarType::Float, "qkv");
  const Tensor sines = check_tensor("sin", sin, rotation, ScalarType::Float, "qkv");
  check_has_weight("q_norm", q_norm, q_norm_bias);
  const MaybeTensor q_weight = check_head_norm("q_norm", q_norm, heads, head_dim);
  const MaybeTensor q_bias = check_head_norm("q_norm_bias", q_norm_bias, heads, head_dim);
  check_has_weight("k_norm", k_norm, k_norm_bias);
  const MaybeTensor k_weight = check_head_norm("k_norm", k_norm, kv_heads, head_dim);
  const MaybeTensor k_bias = check_head_norm("k_norm_bias", k_norm_bias, kv_heads, head_dim);
  const Tensor queries = new_tensor({rows, heads, head_dim}, ScalarType::Float);

  fastdecode_rope_append_args args;
  fastdecode_rope_append_args_init(&args);
  set_rows(&args, rows, heads, pages, keys);
  args.qkv = read<float>(qkv);
  args.q_norm = read<float>(q_weight);
  args.q_norm_bias = read<float>(q_bias);
  args.k_norm = read<float>(k_weight);
  args.k_norm_bias = read<float>(k_bias);
  args.epsilon = static_cast<float>(epsilon);
  args.cos = read<float>(cosines);
  args.sin = read<float>(sines);
  args.keys = keys.mutable_data_ptr();
  args.values = values.mutable_data_ptr();
  args.queries = written<float>(queries);
  require(fastdecode_rope_append(&args));
  return queries;
}

Tensor attend(Tensor given, Tensor keys, Tensor values, Tensor table, Tensor lengths,
              std::optional<double> scale, MaybeString backend) {
  check_backend(backend);
  const Tensor queries = check_floats("queries", given, "rows, heads, head_dim");
  const int64_t rows = queries.size(0), heads = queries.size(1), head_dim = queries.size(2);
  const Pages pages = check_pages(keys, values, table, lengths, rows, "queries");
  if (keys.size(3) != head_dim) {
    refuse("keys.shape = ", text_of(shape_of(keys)), ": must end with ", head_dim,
           ", as for queries");
  }
  if (heads % keys.size(1) != 0) {
    refuse("queries.shape = ", text_of(shape_of(queries)), ": must have a multiple of ",
           keys.size(1), " heads");
  }
  const Tensor out = new_tensor({rows, heads, head_dim}, ScalarType::Float);

  fastdecode_attend_args args;
  fastdecode_attend_args_init(&args);
  set_rows(&args, rows, heads, pages, keys);
  args.scale = static_cast<float>(scale ? *scale : std::pow(static_cast<double>(head_dim), -0.5));
  args.queries = read<float>(queries);
  args.keys = keys.const_data_ptr();
  args.values = values.const_data_ptr();
  args.out = written<float>(out);
  require(fastdecode_attend(&args));
  return out;
}

}  // namespace fastdecode::torch_ops
