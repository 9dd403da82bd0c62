// The schemas of torch.ops.fastdecode.*: the same strings as fastdecode/ops/registration defines in
// Python, which tests/ops/test_torch_library.py compares.
#pragma once

namespace fastdecode::torch_ops {

#define FASTDECODE_PARAMETERS                                                             \
  "Tensor? temperature=None, float temperature_value=1.0, Tensor? top_k=None, "           \
  "SymInt top_k_value=0, Tensor? top_p=None, float top_p_value=1.0, Tensor? min_p=None, " \
  "float min_p_value=0.0, Tensor? penalty=None, float penalty_value=1.0, "                \
  "float contrast_alpha=0.0, SymInt contrast_k=0, Tensor? seed=None, SymInt seed_value=0"
#define FASTDECODE_GRAMMAR                                                                      \
  "Tensor ranges, Tensor set_offsets, SymInt largest_set, Tensor set_of, Tensor tight_set_of, " \
  "Tensor room, Tensor forced, Tensor following, Tensor class_ranges, SymInt vocab"
#define FASTDECODE_PLACES "Tensor(a!) mode, Tensor(b!) step, Tensor(c!) finished"
#define FASTDECODE_STATE                                                    \
  "Tensor? limit=None, Tensor(d!)? inputs=None, Tensor(e!)? lengths=None, " \
  "Tensor(f!)? seen=None, Tensor(g!)? sequences=None"
#define FASTDECODE_SAMPLED "(Tensor token, Tensor logprob, Tensor kept, Tensor status)"

inline constexpr const char kSample[] =
    "sample(Tensor logits, *, Tensor? streams=None, Tensor? weights=None, Tensor? ranges=None, "
    "Tensor? set_offsets=None, SymInt largest_set=-1, Tensor? "
    "set_index=None, " FASTDECODE_PARAMETERS
    ", Tensor? seen=None, Tensor? step=None, SymInt step_value=0, Tensor? noise=None, "
    "str? backend=None) -> " FASTDECODE_SAMPLED;

inline constexpr const char kAdvance[] =
    "advance(Tensor token, " FASTDECODE_GRAMMAR ", " FASTDECODE_PLACES ", *, " FASTDECODE_STATE
    ", Tensor? streams=None, str? backend=None) -> ()";

inline constexpr const char kSampleAdvance[] =
    "sample_advance(Tensor logits, " FASTDECODE_GRAMMAR ", " FASTDECODE_PLACES
    ", *, " FASTDECODE_STATE ", Tensor? streams=None, Tensor? weights=None, " FASTDECODE_PARAMETERS
    ", Tensor? noise=None, str? backend=None) -> " FASTDECODE_SAMPLED;

inline constexpr const char kLinear[] =
    "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? scale=None, *, "
    "str? backend=None) -> Tensor";

inline constexpr const char kEmbed[] =
    "embed(Tensor tokens, Tensor weight, *, str? backend=None) -> Tensor";

inline constexpr const char kRmsNorm[] =
    "rms_norm(Tensor x, Tensor weight, float epsilon=1e-05, *, str? backend=None) -> Tensor";

inline constexpr const char kAddRmsNorm[] =
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float epsilon=1e-05, *, "
    "str? backend=None) -> (Tensor, Tensor)";

inline constexpr const char kSwiglu[] =
    "swiglu(Tensor gate_up, *, str activation=\"silu\", str? backend=None) -> Tensor";

inline constexpr const char kRopeAppend[] =
    "rope_append(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, "
    "Tensor table, Tensor lengths, *, Tensor? q_norm=None, Tensor? q_norm_bias=None, "
    "Tensor? k_norm=None, Tensor? k_norm_bias=None, float epsilon=1e-05, "
    "str? backend=None) -> Tensor";

inline constexpr const char kAttend[] =
    "attend(Tensor queries, Tensor keys, Tensor values, Tensor table, Tensor lengths, "
    "float? scale=None, *, str? backend=None) -> Tensor";

#undef FASTDECODE_PARAMETERS
#undef FASTDECODE_GRAMMAR
#undef FASTDECODE_PLACES
#undef FASTDECODE_STATE
#undef FASTDECODE_SAMPLED

}  // namespace fastdecode::torch_ops
