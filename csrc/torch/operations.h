// The operations of torch.ops.fastdecode.* on the CPU, with the arguments of their schemas. See the
// functions of the same names in fastdecode/ops for what they do. Each checks its arguments (see
// checks.h) and calls the C library.
#pragma once

#include <tuple>

#include "torch/checks.h"

namespace fastdecode::torch_ops {

using Sampled = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // token, logprob, kept, status

Sampled sample(Tensor logits, MaybeTensor streams, MaybeTensor weights, MaybeTensor ranges,
               MaybeTensor set_offsets, int64_t largest_set, MaybeTensor set_index,
               MaybeTensor temperature, double temperature_value, MaybeTensor top_k,
               int64_t top_k_value, MaybeTensor top_p, double top_p_value, MaybeTensor min_p,
               double min_p_value, MaybeTensor penalty, double penalty_value, double contrast_alpha,
               int64_t contrast_k, MaybeTensor seed, int64_t seed_value, MaybeTensor seen,
               MaybeTensor step, int64_t step_value, MaybeTensor noise, MaybeString backend);

void advance(Tensor token, Tensor ranges, Tensor set_offsets, int64_t largest_set, Tensor set_of,
             Tensor tight_set_of, Tensor room, Tensor forced, Tensor following, Tensor class_ranges,
             int64_t vocab, Tensor mode, Tensor step, Tensor finished, MaybeTensor limit,
             MaybeTensor inputs, MaybeTensor lengths, MaybeTensor seen, MaybeTensor sequences,
             MaybeTensor streams, MaybeString backend);

Sampled sample_advance(Tensor logits, Tensor ranges, Tensor set_offsets, int64_t largest_set,
                       Tensor set_of, Tensor tight_set_of, Tensor room, Tensor forced,
                       Tensor following, Tensor class_ranges, int64_t vocab, Tensor mode,
                       Tensor step, Tensor finished, MaybeTensor limit, MaybeTensor inputs,
                       MaybeTensor lengths, MaybeTensor seen, MaybeTensor sequences,
                       MaybeTensor streams, MaybeTensor weights, MaybeTensor temperature,
                       double temperature_value, MaybeTensor top_k, int64_t top_k_value,
                       MaybeTensor top_p, double top_p_value, MaybeTensor min_p, double min_p_value,
                       MaybeTensor penalty, double penalty_value, double contrast_alpha,
                       int64_t contrast_k, MaybeTensor seed, int64_t seed_value, MaybeTensor noise,
                       MaybeString backend);

Tensor linear(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor scale, MaybeString backend);

Tensor embed(Tensor tokens, Tensor weight, MaybeString backend);

Tensor rms_norm(Tensor x, Tensor weight, double epsilon, MaybeString backend);

std::tuple<Tensor, Tensor> add_rms_norm(Tensor x, Tensor residual, Tensor weight, double epsilon,
                                        MaybeString backend);

Tensor swiglu(Tensor gate_up, std::string activation, MaybeString backend);

Tensor rope_append(Tensor qkv, Tensor cos, Tensor sin, Tensor keys, Tensor values, Tensor table,
                   Tensor lengths, MaybeTensor q_norm, MaybeTensor q_norm_bias, MaybeTensor k_norm,
                   MaybeTensor k_norm_bias, double epsilon, MaybeString backend);

Tensor attend(Tensor queries, Tensor keys, Tensor values, Tensor table, Tensor lengths,
              std::optional<double> scale, MaybeString backend);

}  // namespace fastdecode::torch_ops
