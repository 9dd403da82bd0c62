#include "cpu/decode_check.h"

#include <array>
#include <cstdint>
#include <cstdio>

#include "cpu/decode_kernels.h"

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

// The sizes of an operation on heads and pages.
template <typename Args>
fastdecode_result check_heads_and_pages(const Args& a, int64_t least_head_dim) {
  CHECKED(check_numbers({{"rows", a.rows, 0},
                         {"heads", a.heads, 1},
                         {"kv_heads", a.kv_heads, 1},
                         {"head_dim", a.head_dim, least_head_dim},
                         {"pages", a.pages, 0},
                         {"page_slots", a.page_slots, 1},
                         {"table_width", a.table_width, 0},
                         {"table_stride", a.table_stride, a.table_width, kMaxElements},
                         {"threads", a.threads, 0}}));
  CHECKED(check_dtype(a.dtype));
  CHECKED(check_heads(a.heads, a.kv_heads));
  CHECKED(check_array("table", {{"rows", a.rows}, {"table_stride", a.table_stride}}));
  CHECKED(check_array("queries", {{"rows", a.rows}, {"heads", a.heads}, {"head_dim", a.head_dim}}));
  return check_array("keys", {{"pages", a.pages},
                              {"kv_heads", a.kv_heads},
                              {"page_slots", a.page_slots},
                              {"head_dim", a.head_dim}});
}

// Keys or values.
template <typename Args>
Area pages_area(const char* name, const Args& a, const void* begin) {
  return {name, begin, a.pages * a.kv_heads * a.page_slots * a.head_dim, size_of(a.dtype)};
}

template <typename Args>
Area table_area(const Args& a) {
  return {"table", a.table, a.rows > 0 ? (a.rows - 1) * a.table_stride + a.table_width : 0, 4};
}

// The keys (number 2 * i) or the values (2 * i + 1) of layer i.
const void* pages_of_step(const fastdecode_decode_args& a, int64_t number) {
  const fastdecode_layer* layer = reinterpret_cast<const fastdecode_layer*>(
      reinterpret_cast<const char*>(a.layers) + static_cast<size_t>(number / 2) * a.layer_size);
  return number % 2 == 0 ? layer->keys : layer->values;
}

const char* kind_of_pages(int64_t number) {
  return number % 2 == 0 ? "keys" : "values";
}

// What a step writes, x and the pages of all layers, is apart from all that it reads but weights.
fastdecode_result check_step_apart(const fastdecode_decode_args& a) {
  if (a.rows == 0) return FASTDECODE_OK;
  const std::array<Area, 1> x = {{{"x", a.x, a.rows * a.hidden, 4}}};
  const std::array<Area, 5> read = {{{"cos", a.cos, a.rows * a.head_dim, 4},
                                     {"sin", a.sin, a.rows * a.head_dim, 4},
                                     {"norm", a.norm, a.hidden, 4},
                                     table_area(a),
                                     {"lengths", a.lengths, a.rows, 8}}};
  CHECKED(check_apart(x, read));
  for (int64_t n = 0; n < 2 * a.layer_count; ++n) {
    const Area pages = pages_area(kind_of_pages(n), a, pages_of_step(a, n));
    const auto check = [&](const Area& other) {
      INVALID_IF(pages.meets(other), "layers[%" PRId64 "].%s: must not overlap %s", n / 2,
                 pages.name, other.name);
      return FASTDECODE_OK;
    };
    for (const Area& other : read) CHECKED(check(other));
    CHECKED(check(x[0]));
    // All have the same size. A model has few layers: comparing each two takes microseconds.
    const uintptr_t at = reinterpret_cast<uintptr_t>(pages.begin);
    const uintptr_t bytes = static_cast<uintptr_t>(pages.elements * pages.element);
    for (int64_t earlier = 0; earlier < n; ++earlier) {
      const uintptr_t other = reinterpret_cast<uintptr_t>(pages_of_step(a, earlier));
      INVALID_IF((at > other ? at - other : other - at) < bytes,
                 "layers[%" PRId64 "].%s: must not overlap layers[%" PRId64 "].%s", n / 2,
                 pages.name, earlier / 2, kind_of_pages(earlier));
    }
  }
  return FASTDECODE_OK;
}

// How the matrices of layer i are stored.
fastdecode_result check_matrices(const fastdecode_decode_args& a, const fastdecode_layer& layer,
                                 int64_t i) {
  if (layer.weights == nullptr) return FASTDECODE_OK;
  const Size inputs[] = {{"hidden", a.hidden}, {"hidden", a.hidden},
                         {"hidden", a.hidden}, {"heads * head_dim", a.heads * a.head_dim},
                         {"hidden", a.hidden}, {"hidden", a.hidden},
                         {"inner", a.inner}};
  for (int m = 0; m < 7; ++m) {
    char name[64];
    std::snprintf(name, sizeof name, "layers[%lld].weights[%d]", static_cast<long long>(i), m);
    CHECKED(check_weights(name, layer.weights + m, inputs[m].name, inputs[m].value, true));
  }
  return FASTDECODE_OK;
}

}  // namespace

fastdecode_result check_activation(int64_t activation) {
  INVALID_IF(activation < 0 || activation >= kActivations,
             "activation = %" PRId64 ": must be a fastdecode_activation, 0 to %d", activation,
             kActivations - 1);
  return FASTDECODE_OK;
}

fastdecode_result check_weights(const char* name, const fastdecode_weights* how, const char* inputs,
                                int64_t k, bool any) {
  INVALID_IF(how == nullptr, "%s = NULL: must say how the weights are stored", name);
  INVALID_IF(how->type < 0 || how->type >= kWeightTypeCount,
             "%s.type = %d: must be a fastdecode_weight_type, 0 to %d", name, how->type,
             kWeightTypeCount - 1);
  const WeightType& type = kWeightTypes[how->type];
  INVALID_IF(k % type.block != 0,
             "%s = %" PRId64 ": must be a multiple of %" PRId64 " for %s weights", inputs, k,
             type.block, type.name);
  const bool int4 = how->type == FASTDECODE_WEIGHTS_INT4;
  const bool scaled = in_panels(how->type) || how->type == FASTDECODE_WEIGHTS_INT8;
  INVALID_IF(int4 && (how->group < 32 || (how->group != 32 && how->group % 64 != 0)),
             "%s.group = %d: must be 32 or a multiple of 64", name, how->group);
  INVALID_IF(!int4 && how->group != 0, "%s.group = %d: must be 0 for %s weights", name, how->group,
             type.name);
  const int64_t most = in_panels(how->type) ? kPanelFeatures - 1 : 0;
  INVALID_IF(how->first < 0 || how->first > most,
             "%s.first = %" PRId64 ": must be 0%s for %s weights", name, how->first,
             most > 0 ? " to 15" : "", type.name);
  INVALID_IF(any && scaled && how->scale == nullptr, "%s.scale = NULL: must not be for %s weights",
             name, type.name);
  INVALID_IF(!scaled && how->scale != nullptr, "%s.scale: must be NULL for %s weights", name,
             type.name);
  INVALID_IF(!int4 && how->offset != nullptr, "%s.offset: must be NULL for %s weights", name,
             type.name);
  return FASTDECODE_OK;
}

fastdecode_result check_decode_args(const fastdecode_decode_args& a) {
  CHECKED(check_size("fastdecode_layer", "fastdecode_decode_args", "args->layer_size", a.layer_size,
                     kFirstLayerSize, sizeof(fastdecode_layer)));
  CHECKED(check_numbers(
      {{"layer_count", a.layer_count, 0}, {"hidden", a.hidden, 1}, {"inner", a.inner, 1}}));
  CHECKED(check_heads_and_pages(a, 2));
  CHECKED(check_array("x", {{"rows", a.rows}, {"hidden", a.hidden}}));
  CHECKED(check_array("the result of gate", {{"rows", a.rows}, {"inner", a.inner}}));
  CHECKED(check_array("gate", {{"inner", a.inner}, {"hidden", a.hidden}}));
  CHECKED(check_array("q", {{"heads", a.heads}, {"head_dim", a.head_dim}, {"hidden", a.hidden}}));
  CHECKED(check_not_negative({{"epsilon", a.epsilon}, {"qk_epsilon", a.qk_epsilon}}));
  INVALID_IF(!std::isfinite(a.scale) || a.scale == 0.0f,
             "scale = %g: must be finite and not 0; 1 / sqrt(head_dim) is usual",
             static_cast<double>(a.scale));
  CHECKED(check_activation(a.activation));
  CHECKED(check_halves(a.head_dim));
  CHECKED(check_pointers({{"layers", a.layers, a.layer_count > 0},
                          {"norm", a.norm, true},
                          {"table", a.table, a.rows > 0},
                          {"lengths", a.lengths, a.rows > 0},
                          {"cos", a.cos, a.rows > 0},
                          {"sin", a.sin, a.rows > 0},
                          {"x", a.x, a.rows > 0}}));
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const fastdecode_layer l = layer_at(a, i);
    if (const char* name = missing(l)) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "layers[%lld].%s = NULL: must not be",
                  static_cast<long long>(i), name);
    }
    char where[40];
    std::snprintf(where, sizeof where, "layers[%lld].", static_cast<long long>(i));
    CHECKED(check_head_norm(where, "q_norm", l.q_norm, l.q_norm_bias));
    CHECKED(check_head_norm(where, "k_norm", l.k_norm, l.k_norm_bias));
    CHECKED(check_matrices(a, l, i));
  }
  CHECKED(check_pages(a, 0));
  return check_step_apart(a);
}

fastdecode_result check_rope_append_args(const fastdecode_rope_append_args& a) {
  CHECKED(check_heads_and_pages(a, 2));
  CHECKED(check_halves(a.head_dim));
  CHECKED(check_not_negative({{"epsilon", a.epsilon}}));
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
  if (!any) return FASTDECODE_OK;
  const int64_t queries = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  const std::array<Area, 3> written = {{pages_area("keys", a, a.keys),
                                        pages_area("values", a, a.values),
                                        {"queries", a.queries, a.rows * queries, 4}}};
  CHECKED(check_all_apart(written));
  CHECKED(check_apart(written, {{"qkv", a.qkv, a.rows * (queries + 2 * kv), 4},
                                {"cos", a.cos, a.rows * a.head_dim, 4},
                                {"sin", a.sin, a.rows * a.head_dim, 4},
                                {"q_norm", a.q_norm, queries, 4},
                                {"q_norm_bias", a.q_norm_bias, queries, 4},
                                {"k_norm", a.k_norm, kv, 4},
                                {"k_norm_bias", a.k_norm_bias, kv, 4},
                                table_area(a),
                                {"lengths", a.lengths, a.rows, 8}}));
  return check_pages(a, 0);
}

fastdecode_result check_attend_args(const fastdecode_attend_args& a) {
  CHECKED(check_heads_and_pages(a, 1));
  INVALID_IF(!std::isfinite(a.scale), "scale = %g: must be finite", static_cast<double>(a.scale));
  const bool any = a.rows > 0;
  CHECKED(check_pointers({{"queries", a.queries, any},
                          {"keys", a.keys, any},
                          {"values", a.values, any},
                          {"table", a.table, any},
                          {"lengths", a.lengths, any},
                          {"out", a.out, any}}));
  const int64_t heads = a.rows * a.heads * a.head_dim;
  CHECKED(check_apart({{"out", a.out, heads, 4}}, {{"queries", a.queries, heads, 4},
                                                   pages_area("keys", a, a.keys),
                                                   pages_area("values", a, a.values),
                                                   table_area(a),
                                                   {"lengths", a.lengths, a.rows, 8}}));
  return check_pages(a, -1);
}

}  // namespace fastdecode
