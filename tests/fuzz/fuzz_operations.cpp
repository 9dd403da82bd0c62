// The operations of a decode step on their own: a row has the same bits alone and among others, on
// any number of threads, nothing is written beside the outputs, and nothing that holds no id read.

#include "values.h"

namespace fuzz {
namespace {

// Rows' pages one behind the other, in the order of their last rows; NaN where there is no id.
struct Stored {
  int64_t rows, heads, kv_heads, head_dim, page_slots, pages, width;
  int32_t dtype;
  Exact<int32_t> table;
  Exact<int64_t> lengths;
  Exact<uint8_t> keys, values;

  uint8_t* slot(Exact<uint8_t>& of, int64_t row, int64_t head, int64_t id) {
    const int64_t page = table[row * width + id / page_slots];
    const int64_t at = ((page * kv_heads + head) * page_slots + id % page_slots) * head_dim;
    return of.get() + at * value_size(dtype);
  }
};

Stored make_stored(Bytes& bytes, int64_t least, bool even) {
  Stored s;
  s.rows = bytes.in(0, 5);
  s.kv_heads = bytes.in(1, 3);
  s.heads = s.kv_heads * bytes.in(1, 4);
  s.head_dim = even ? 2 * bytes.in(1, 20) : bytes.in(1, 40);
  s.page_slots = bytes.in(1, 40);
  s.dtype = static_cast<int32_t>(bytes.in(0, 2));
  s.lengths = Exact<int64_t>(s.rows);
  s.pages = s.width = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    s.lengths[r] = bytes.one_in(32) ? bytes.in(500, 1100) : bytes.in(least, 50);
    s.width = std::max(s.width, s.lengths[r] / s.page_slots + 1);
  }
  s.table = Exact<int32_t>(s.rows * s.width);
  s.table.fill(-1);
  for (int64_t r = s.rows - 1; r >= 0; --r) {
    const int64_t last = s.lengths[r] - least;  // the last id that is there, or is to come
    for (int64_t p = 0; p <= last / s.page_slots; ++p) {
      s.table[r * s.width + p] = static_cast<int32_t>(s.pages++);
    }
  }
  Random random(bytes.bits(2));
  s.keys = Exact<uint8_t>(s.pages * s.kv_heads * s.page_slots * s.head_dim * value_size(s.dtype));
  s.keys.fill(0xff);
  s.values = s.keys;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t id = 0; id < s.lengths[r]; ++id) {
      for (int64_t i = 0; i < s.kv_heads * s.head_dim; ++i) {
        const int64_t head = i / s.head_dim, at = i % s.head_dim;
        put(s.dtype, s.slot(s.keys, r, head, id), at, random_bits(s.dtype, random));
        put(s.dtype, s.slot(s.values, r, head, id), at, random_bits(s.dtype, random));
      }
    }
  }
  note(static_cast<uint64_t>(s.rows * 64 + s.head_dim));
  return s;
}

template <typename Args>
void set_stored(Args& a, Stored& s, int64_t first, int64_t rows, int32_t threads) {
  a.rows = rows;
  a.heads = s.heads;
  a.kv_heads = s.kv_heads;
  a.head_dim = s.head_dim;
  a.dtype = s.dtype;
  a.threads = threads;
  a.keys = s.keys.get();
  a.values = s.values.get();
  a.pages = s.pages;
  a.page_slots = s.page_slots;
  a.table = s.table.get() + first * s.width;
  a.table_stride = a.table_width = s.width;
  a.lengths = s.lengths.get() + first;
}

template <typename Args>
bool break_args(Bytes& bytes, Args& a, Stored& s) {
  switch (bytes.in(0, 7)) {
    case 0:
      a.head_dim = bytes.of<int64_t>({0, -1, INT64_MIN});
      return true;
    case 1:
      a.kv_heads = bytes.of<int64_t>({0, -1, a.heads + 1, INT64_MIN});
      return true;
    case 2:
      a.rows = -1;
      return true;
    case 3:
      a.keys = nullptr;
      return a.rows > 0;
    case 4:
      a.dtype = bytes.of<int32_t>({-1, 3});
      return true;
    case 5:
      a.page_slots = bytes.of<int64_t>({0, -1, INT64_MIN});
      return true;
    case 6:
      if (s.rows > 0) s.table[(s.rows - 1) * s.width] = bytes.of<int32_t>({-1, INT32_MAX});
      return s.rows > 0;
    default:
      if (s.rows > 0) s.lengths[s.rows - 1] = bytes.of<int64_t>({-1, INT64_MAX, INT64_MIN});
      return s.rows > 0;
  }
}

Exact<float> part(Exact<float>& all, int64_t row, int64_t rows, int64_t width) {
  Exact<float> found(rows * width);
  if (found.size() > 0) memcpy(found.get(), all.get() + row * width, found.bytes());
  return found;
}

// --- attend

Exact<float> attend(Stored& s, Exact<float>& queries, int64_t first, int64_t rows,
                    int32_t threads) {
  const int64_t width = s.heads * s.head_dim;
  Exact<float> q = part(queries, first, rows, width), out(rows * width);
  fastdecode_attend_args a;
  fastdecode_attend_args_init(&a);
  set_stored(a, s, first, rows, threads);
  a.scale = 0.3f;
  a.queries = q.get();
  a.out = out.get();
  CHECK(fastdecode_attend(&a) == FASTDECODE_OK);
  return out;
}

void check_attend(Bytes& bytes, Stored& s, Exact<float>& queries) {
  const int64_t width = s.heads * s.head_dim;
  Exact<float> out = attend(s, queries, 0, s.rows, 1);
  for (int64_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i]) <= 2.001f);
  CHECK(attend(s, queries, 0, s.rows, static_cast<int32_t>(bytes.in(0, 4))).same_bits(out));
  if (s.rows == 0) return;
  const int64_t row = bytes.in(0, s.rows - 1);
  CHECK(attend(s, queries, row, 1, 1).same_bits(part(out, row, 1, width)));
}

void fuzz_attend(Bytes& bytes) {
  Stored s = make_stored(bytes, 1, false);
  Random random(bytes.bits(2));
  Exact<float> queries = filled(s.rows * s.heads * s.head_dim, random);
  if (!bytes.one_in(4)) {
    for_each_isa([&] { check_attend(bytes, s, queries); });
    return;
  }
  fastdecode_attend_args a;
  fastdecode_attend_args_init(&a);
  set_stored(a, s, 0, s.rows, 1);
  a.queries = queries.get();
  Exact<float> out(queries.size());
  a.out = out.fill(77.0f).get();
  if (!break_args(bytes, a, s)) return;
  check_refusal(fastdecode_attend(&a));
  for (int64_t i = 0; i < out.size(); ++i) CHECK(out[i] == 77.0f);
}

// --- rope_append

struct New {
  Exact<float> qkv, cos, sin, q_norm, q_norm_bias, k_norm, k_norm_bias;
  int64_t kind;  // of norms
};

void set_new(fastdecode_rope_append_args& a, New& n) {
  a.qkv = n.qkv.get();
  a.cos = n.cos.get();
  a.sin = n.sin.get();
  if (n.kind > 0) a.q_norm = n.q_norm.get();
  if (n.kind > 1) a.q_norm_bias = n.q_norm_bias.get();
  if (n.kind > 0) a.k_norm = n.k_norm.get();
  if (n.kind > 2) a.k_norm_bias = n.k_norm_bias.get();
}

// The queries; keys and values are written into `s`.
Exact<float> append(Stored& s, New& n, int64_t first, int64_t rows, int32_t threads) {
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim;
  New some = n;
  some.qkv = part(n.qkv, first, rows, width);
  some.cos = part(n.cos, first, rows, s.head_dim);
  some.sin = part(n.sin, first, rows, s.head_dim);
  Exact<float> queries(rows * s.heads * s.head_dim);
  fastdecode_rope_append_args a;
  fastdecode_rope_append_args_init(&a);
  set_stored(a, s, first, rows, threads);
  set_new(a, some);
  a.queries = queries.get();
  CHECK(fastdecode_rope_append(&a) == FASTDECODE_OK);
  return queries;
}

void check_append(Bytes& bytes, Stored& s, New& n) {
  Stored together = s, again = s, alone = s;
  Exact<float> queries = append(together, n, 0, s.rows, 1);
  for (int64_t i = 0; i < queries.size(); ++i) CHECK(std::isfinite(queries[i]));
  CHECK(append(again, n, 0, s.rows, static_cast<int32_t>(bytes.in(0, 4))).same_bits(queries));
  for (int64_t r = 0; r < s.rows; ++r) {
    CHECK(append(alone, n, r, 1, 1).same_bits(part(queries, r, 1, s.heads * s.head_dim)));
  }
  for (const Stored* other : {&again, &alone}) {
    CHECK(other->keys.same_bits(together.keys));
    CHECK(other->values.same_bits(together.values));
  }
  for (int64_t r = 0; r < s.rows; ++r) {  // put back, the rest must be as it was
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const size_t size = static_cast<size_t>(s.head_dim * value_size(s.dtype));
      memset(together.slot(together.keys, r, head, s.lengths[r]), 0xff, size);
      memset(together.slot(together.values, r, head, s.lengths[r]), 0xff, size);
    }
  }
  CHECK(together.keys.same_bits(s.keys));
  CHECK(together.values.same_bits(s.values));
}

void fuzz_append(Bytes& bytes) {
  Stored s = make_stored(bytes, 0, true);
  Random random(bytes.bits(2));
  New n;
  n.kind = bytes.in(0, 3);
  n.qkv = filled(s.rows * (s.heads + 2 * s.kv_heads) * s.head_dim, random);
  n.cos = filled(s.rows * s.head_dim, random);
  n.sin = filled(s.rows * s.head_dim, random);
  n.q_norm = filled(s.heads * s.head_dim, random);
  n.q_norm_bias = filled(s.heads * s.head_dim, random);
  n.k_norm = filled(s.kv_heads * s.head_dim, random);
  n.k_norm_bias = filled(s.kv_heads * s.head_dim, random);
  if (!bytes.one_in(4)) {
    for_each_isa([&] { check_append(bytes, s, n); });
    return;
  }
  fastdecode_rope_append_args a;
  fastdecode_rope_append_args_init(&a);
  set_stored(a, s, 0, s.rows, 1);
  set_new(a, n);
  Exact<float> queries(s.rows * s.heads * s.head_dim);
  a.queries = queries.fill(77.0f).get();
  const Stored before = s;
  if (!break_args(bytes, a, s)) return;
  check_refusal(fastdecode_rope_append(&a));
  for (int64_t i = 0; i < queries.size(); ++i) CHECK(queries[i] == 77.0f);
  CHECK(s.keys.same_bits(before.keys));
  CHECK(s.values.same_bits(before.values));
}

// --- rows by themselves

using RowsOperation = fastdecode_result (*)(Exact<float>&, const float*, int64_t, int64_t, float*,
                                            int32_t);

fastdecode_result norm(Exact<float>& weight, const float* x, int64_t rows, int64_t n, float* out,
                       int32_t threads) {
  return fastdecode_rms_norm(x, nullptr, weight.get(), 1e-5f, rows, n, nullptr, out, threads);
}

fastdecode_result add_norm(Exact<float>& weight, const float* x, int64_t rows, int64_t n,
                           float* out, int32_t threads) {
  Exact<float> sum(rows * n);
  const fastdecode_result result =
      fastdecode_rms_norm(x, x, weight.get(), 1e-5f, rows, n, sum.get(), out, threads);
  for (int64_t i = 0; i < rows * n; ++i) CHECK(sum[i] == x[i] + x[i]);
  return result;
}

template <int32_t activation>
fastdecode_result glu(Exact<float>&, const float* x, int64_t rows, int64_t n, float* out,
                      int32_t threads) {
  return fastdecode_glu(x, activation, rows, n / 2, out, threads);
}

void fuzz_rows(Bytes& bytes) {
  const int64_t rows = bytes.in(0, 6), n = 2 * bytes.in(1, bytes.one_in(8) ? 300 : 40);
  Random random(bytes.bits(2));
  Exact<float> weight = filled(n, random), x = filled(rows * n, random);
  const RowsOperation run = bytes.of<RowsOperation>({norm, add_norm, glu<0>, glu<1>, glu<2>});
  const bool gates = run != norm && run != add_norm;
  const int64_t width = gates ? n / 2 : n;
  Exact<float> first(rows * width);
  bool any = false;
  for_each_isa([&] {
    Exact<float> out(rows * width), other(rows * width);
    CHECK(run(weight, x.get(), rows, n, out.get(), 1) == FASTDECODE_OK);
    if (gates && any) CHECK(out.same_bits(first));  // no sums: the same for all
    first = out;
    any = true;
    if (run == glu<0>) {
      CHECK(fastdecode_swiglu(x.get(), rows, width, other.get(), 1) == FASTDECODE_OK);
      CHECK(other.same_bits(out));
    }
    const int32_t threads = static_cast<int32_t>(bytes.in(0, 4));
    CHECK(run(weight, x.get(), rows, n, other.get(), threads) == FASTDECODE_OK);
    CHECK(other.same_bits(out));
    for (int64_t r = 0; r < rows; ++r) {
      Exact<float> row = part(x, r, 1, n), alone(width);
      CHECK(run(weight, row.get(), 1, n, alone.get(), 1) == FASTDECODE_OK);
      CHECK(alone.same_bits(part(out, r, 1, width)));
    }
  });
}

void fuzz_embed(Bytes& bytes) {
  const int64_t rows = bytes.in(0, 6), vocab = bytes.in(1, 30), hidden = bytes.in(1, 70);
  const int32_t dtype = static_cast<int32_t>(bytes.in(0, 2));
  Random random(bytes.bits(2));
  Exact<uint8_t> weight = stored(dtype, vocab * hidden, random);
  Exact<int64_t> tokens(rows);
  for (int64_t r = 0; r < rows; ++r) tokens[r] = bytes.in(0, vocab - 1);
  const bool bad = rows > 0 && bytes.one_in(4);
  if (bad) tokens[rows - 1] = bytes.of<int64_t>({-1, vocab, INT64_MAX, INT64_MIN});
  for_each_isa([&] {
    Exact<float> out(rows * hidden);
    out.fill(77.0f);
    const fastdecode_result result =
        fastdecode_embed(tokens.get(), rows, weight.get(), dtype, vocab, hidden, out.get(), 2);
    if (bad) {
      check_refusal(result);
      for (int64_t i = 0; i < out.size(); ++i) CHECK(out[i] == 77.0f);
      return;
    }
    CHECK(result == FASTDECODE_OK);
    for (int64_t i = 0; i < out.size(); ++i) {
      CHECK(out[i] == number(dtype, weight.get(), tokens[i / hidden] * hidden + i % hidden));
    }
  });
}

}  // namespace

void fuzz_operations(Bytes& bytes) {
  const int64_t which = bytes.in(0, 7);
  note(static_cast<uint64_t>(which));
  if (which < 3) {
    fuzz_attend(bytes);
  } else if (which < 6) {
    fuzz_append(bytes);
  } else if (which == 6) {
    fuzz_rows(bytes);
  } else {
    fuzz_embed(bytes);
  }
}

}  // namespace fuzz
