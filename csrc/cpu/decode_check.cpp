#include "cpu/decode_check.h"

#include "cpu/error.h"

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
                {"qk_weight", layer.qk_weight},
                {"qk_bias", layer.qk_bias},
                {"keys", layer.keys},
                {"values", layer.values}};
  for (const auto& part : needed) {
    if (part.pointer == nullptr) return part.name;
  }
  return nullptr;
}

}  // namespace

fastdecode_result check_decode_args(const fastdecode_decode_args& a) {
  const struct {
    const char* name;
    int64_t value, least;
  } numbers[] = {{"layer_count", a.layer_count, 0},
                 {"hidden", a.hidden, 1},
                 {"inner", a.inner, 1},
                 {"heads", a.heads, 1},
                 {"kv_heads", a.kv_heads, 1},
                 {"head_dim", a.head_dim, 2},
                 {"rows", a.rows, 0},
                 {"slots", a.slots, 1},
                 {"threads", a.threads, 0}};
  for (const auto& n : numbers) {
    if (n.value < n.least) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "%s = %lld: must be at least %lld", n.name,
                  static_cast<long long>(n.value), static_cast<long long>(n.least));
    }
  }
  if (a.heads % a.kv_heads != 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "kv_heads = %lld: must divide heads = %lld",
                static_cast<long long>(a.kv_heads), static_cast<long long>(a.heads));
  }
  if (a.head_dim % 2 != 0) {
    return fail(FASTDECODE_INVALID_ARGUMENT, "head_dim = %lld: must be even",
                static_cast<long long>(a.head_dim));
  }
  const struct {
    const char* name;
    const void* pointer;
    bool needed;
  } pointers[] = {{"layers", a.layers, a.layer_count > 0},
                  {"norm", a.norm, true},
                  {"lengths", a.lengths, a.rows > 0},
                  {"cos", a.cos, a.rows > 0},
                  {"sin", a.sin, a.rows > 0},
                  {"x", a.x, a.rows > 0}};
  for (const auto& p : pointers) {
    if (p.needed && p.pointer == nullptr) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "%s = NULL: must not be", p.name);
    }
  }
  for (int64_t i = 0; i < a.layer_count; ++i) {
    if (const char* name = missing(a.layers[i])) {
      return fail(FASTDECODE_INVALID_ARGUMENT, "layers[%lld].%s = NULL: must not be",
                  static_cast<long long>(i), name);
    }
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.lengths[r] < 0 || a.lengths[r] >= a.slots) {
      return fail(FASTDECODE_INVALID_ARGUMENT,
                  "lengths[%lld] = %lld: must be at least 0 and below slots = %lld",
                  static_cast<long long>(r), static_cast<long long>(a.lengths[r]),
                  static_cast<long long>(a.slots));
    }
  }
  return FASTDECODE_OK;
}

}  // namespace fastdecode
