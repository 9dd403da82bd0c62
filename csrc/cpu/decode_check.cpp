#include "cpu/decode_check.h"

#include <cstdio>

namespace fastdecode {
namespace {

const char* missing(const fastdecode_layer& layer) {
  const struct {
    const char* name;
    const void* pointer;
  } needed[] = {{"q", layer.q},
                {"k", layer.k},
                {"v", layer.v},
                {"o", layer.o},
                {"gate", layer.gate},
                {"up", layer.up},
                {"down", layer.down},
                {"norm_attention", layer.norm_attention},
                {"norm_mlp", layer.norm_mlp},
                {"keys", layer.keys},
                {"values", layer.values}};
  for (const auto& part : needed) {
    if (part.pointer == nullptr) return part.name;
  }
  return nullptr;
}

// A norm may have a weight without a bias, but not a bias without a weight.
fastdecode_result check_head_norm(const char* where, const char* name, const float* weight,
                                  const float* bias) {
  if (weight != nullptr || bias == nullptr) return FASTDECODE_OK;
  return fail(FASTDECODE_INVALID_ARGUMENT, "%s%s = NULL: must not be where there is a %s_bias",
              where, name, name);
}

fastdecode_result check_heads(int64_t heads, int64_t kv_heads) {
  if (heads % kv_heads == 0) return FASTDECODE_OK;
  return fail(FASTDECODE_INVALID_ARGUMENT, "kv_heads = %lld: must divide heads = %lld",
              static_cast<long long>(kv_heads), static_cast<long long>(heads));
}

fastdecode_result check_halves(int64_t head_dim) {
  if (head_dim % 2 == 0) return FASTDECODE_OK;
  return fail(FASTDECODE_INVALID_ARGUMENT, "head_dim = %lld: must be even",
              static_cast<long long>(head_dim));
}

// The pages of each row's tokens. The row's last token is number length + `last`.
template <typename Args>
fastdecode_result check_pages(const Args& a, int64_t last) {
  for (int64_t r = 0; r < a.rows; ++r) {
    // Unsigned: no overflow. A length that is too small is refused before `token` is used.
    const uint64_t token = static_cast<uint64_t>(a.lengths[r]) + static_cast<uint64_t>(last);
    if (a.lengths[r] < -last ||
        token / static_cast<uint64_t>(a.page_slots) >= static_cast<uint64_t>(a.table_width)) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "lengths[%lld] = %lld: must be at least %lld, and in one of table_width = %lld "
                  "pages of page_slots = %lld",
                  static_cast<long long>(r), static_cast<long long>(a.lengths[r]),
                  static_cast<long long>(-last), static_cast<long long>(a.table_width),
                  static_cast<long long>(a.page_slots));
    }
    const int64_t pages = static_cast<int64_t>(token) / a.page_slots;
    for (int64_t p = 0; p <= pages; ++p) {
      const int32_t page = a.table[r * a.table_stride + p];
      if (page < 0 || page >= a.pages) {
        return fail(FASTDECODE_INVALID_ARGUMENT,
                    "table[%lld, %lld] = %d: must be a page in [0, %lld)",
                    static_cast<long long>(r), static_cast<long long>(p), page,
                    static_cast<long long>(a.pages));
      }
    }
  }
  return FASTDECODE_OK;
}

}  // namespace

fastdecode_result check_numbers(std::initializer_list<Number> numbers) {
  for (const Number& n : numbers) {
    if (n.value < n.least) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "%s = %lld: must be at least %lld", n.name,
                  static_cast<long long>(n.value), static_cast<long long>(n.least));
    }
  }
  return FASTDECODE_OK;
}

fastdecode_result check_pointers(std::initializer_list<Pointer> pointers) {
  for (const Pointer& p : pointers) {
    if (p.needed && p.pointer == nullptr) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "%s = NULL: must not be", p.name);
    }
  }
  return FASTDECODE_OK;
}

fastdecode_result check_dtype(int32_t dtype) {
  if (is_dtype(dtype)) return FASTDECODE_OK;
  return fail(FASTDECODE_INVALID_ARGUMENT,
              "dtype = %d: must be 0 (float32), 1 (bfloat16) or 2 (float16)", dtype);
}

namespace {

// The numbers of an operation on heads and pages.
template <typename Args>
fastdecode_result check_shapes(const Args& a, int64_t least_head_dim) {
  CHECKED(check_numbers({{"rows", a.rows, 0},
                         {"heads", a.heads, 1},
                         {"kv_heads", a.kv_heads, 1},
                         {"head_dim", a.head_dim, least_head_dim},
                         {"pages", a.pages, 0},
                         {"page_slots", a.page_slots, 1},
                         {"table_width", a.table_width, 0},
                         {"table_stride", a.table_stride, a.table_width},
                         {"threads", a.threads, 0}}));
  CHECKED(check_dtype(a.dtype));
  return check_heads(a.heads, a.kv_heads);
}

}  // namespace

fastdecode_result check_decode_args(const fastdecode_decode_args& a) {
  CHECKED(check_numbers({{"layer_count", a.layer_count, 0},
                         {"hidden", a.hidden, 1},
                         {"inner", a.inner, 1},
                         {"heads", a.heads, 1},
                         {"kv_heads", a.kv_heads, 1},
                         {"head_dim", a.head_dim, 2},
                         {"rows", a.rows, 0},
                         {"pages", a.pages, 0},
                         {"page_slots", a.page_slots, 1},
                         {"table_width", a.table_width, 0},
                         {"table_stride", a.table_stride, a.table_width},
                         {"threads", a.threads, 0}}));
  CHECKED(check_dtype(a.dtype));
  CHECKED(check_heads(a.heads, a.kv_heads));
  CHECKED(check_halves(a.head_dim));
  CHECKED(check_pointers({{"layers", a.layers, a.layer_count > 0},
                          {"norm", a.norm, true},
                          {"table", a.table, a.rows > 0},
                          {"lengths", a.lengths, a.rows > 0},
                          {"cos", a.cos, a.rows > 0},
                          {"sin", a.sin, a.rows > 0},
                          {"x", a.x, a.rows > 0}}));
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const fastdecode_layer& l = a.layers[i];
    if (const char* name = missing(l)) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "layers[%lld].%s = NULL: must not be",
                  static_cast<long long>(i), name);
    }
    char where[40];
    std::snprintf(where, sizeof where, "layers[%lld].", static_cast<long long>(i));
    CHECKED(check_head_norm(where, "q_norm", l.q_norm, l.q_norm_bias));
    CHECKED(check_head_norm(where, "k_norm", l.k_norm, l.k_norm_bias));
  }
  return check_pages(a, 0);
}

fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& a) {
  CHECKED(check_shapes(a, 2));
  CHECKED(check_halves(a.head_dim));
  const bool any = a.rows > 0;
  CHECKED(check_pointers({{"qkv", a.qkv, any},
                          {"cos", a.cos, any},
                          {"sin", a.sin, any},
                          {"table", a.table, any},
                          {"lengths", a.lengths, any},
                          {"keys", a.keys, any},
                          {"values", a.values, any},
                          {"queries", a.queries, any}}));
  CHECKED(check_head_norm("", "q_norm", a.q_norm, a.q_norm_bias));
  CHECKED(check_head_norm("", "k_norm", a.k_norm, a.k_norm_bias));
  return check_pages(a, 0);
}

fastdecode_result check_attend_args(const fastdecode_attend_args& a) {
  CHECKED(check_shapes(a, 1));
  const bool any = a.rows > 0;
  CHECKED(check_pointers({{"queries", a.queries, any},
                          {"keys", a.keys, any},
                          {"values", a.values, any},
                          {"table", a.table, any},
                          {"lengths", a.lengths, any},
                          {"out", a.out, any}}));
  return check_pages(a, -1);
}

}  // namespace fastdecode
