// sample, advance and sample_advance. The checks are those of fastdecode/ops/sample/checks.py,
// fastdecode/ops/decode_state.py and `from_tensors` of token_sets.py and grammar_tables.py.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>

#include "core/sample_group.h"
#include "torch/operations.h"

namespace fastdecode::torch_ops {
namespace {

// Token sets whose tables have the right shapes.
struct Sets {
  Tensor ranges, offsets;
  int64_t count;
};

Sets check_sets(const Tensor& ranges, const Tensor& offsets) {
  if (ranges.dim() == 0 || offsets.dim() == 0) {
    refuse("ranges, set_offsets: must be tensors of one dimension or more");
  }
  const Shape pairs = {ranges.size(0), 2}, bounds = {std::max<int64_t>(offsets.size(0), 2)};
  if (shape_of(ranges) != pairs || ranges.scalar_type() != ScalarType::Int || !ranges.is_cpu()) {
    refuse("ranges: must be (n, 2) int32 on cpu, got ", located(ranges));
  }
  if (shape_of(offsets) != bounds || offsets.scalar_type() != ScalarType::Int ||
      !offsets.is_cpu()) {
    refuse("set_offsets: must be (sets + 1,) int32 on cpu, got ", located(offsets));
  }
  const Sets sets = {check_tensor("ranges", ranges, pairs, ScalarType::Int, "logits"),
                     check_tensor("set_offsets", offsets, bounds, ScalarType::Int, "logits"),
                     bounds[0] - 1};
  const int32_t last = read<int32_t>(sets.offsets)[sets.count];
  if (last > pairs[0]) refuse("set_offsets[-1] = ", last, ": there are ", pairs[0], " ranges");
  return sets;
}

// fastdecode_sample_args with the tensors that it points to.
class SampleCall {
 public:
  SampleCall(const Tensor& logits, const MaybeTensor& streams, const MaybeTensor& weights,
             const MaybeTensor& seen, const MaybeTensor& noise) {
    fastdecode_sample_args_init(&args_);
    check_logits(logits);
    set_streams(logits, streams, weights);
    if (seen) {
      if (seen->scalar_type() == ScalarType::Bool) {
        refuse(
            "seen.dtype = torch.bool: must be a bit set of int32 words; "
            "fastdecode.ops.seen_bits makes one");
      }
      args_.seen =
          hold<int32_t>("seen", seen, {args_.groups, (args_.vocab + 31) / 32}, ScalarType::Int);
    }
    if (noise) set_noise(*noise);
    token_ = new_tensor({args_.groups}, ScalarType::Long);
    logprob_ = new_tensor({args_.groups}, ScalarType::Float);
    kept_ = new_tensor({args_.groups}, ScalarType::Int);
    status_ = new_tensor({args_.groups}, ScalarType::Int);
    args_.token = written<int64_t>(*token_);
    args_.logprob = written<float>(*logprob_);
    args_.kept = written<int32_t>(*kept_);
    args_.status = written<int32_t>(*status_);
    args_.threads = threads();
  }

  fastdecode_sample_args& args() { return args_; }

  Sampled result() const { return {*token_, *logprob_, *kept_, *status_}; }

  void set_sets(const Sets& sets) {
    held_.push_back(sets.ranges);
    held_.push_back(sets.offsets);
    args_.ranges = read<int32_t>(sets.ranges);
    args_.set_offsets = read<int32_t>(sets.offsets);
    args_.sets = sets.count;
  }

  void set_set_index(const MaybeTensor& set_index) {
    args_.set_index = hold<int32_t>("set_index", set_index, {args_.groups}, ScalarType::Int);
  }

  void set_parameters(const MaybeTensor& temperature, double temperature_value,
                      const MaybeTensor& top_k, int64_t top_k_value, const MaybeTensor& top_p,
                      double top_p_value, const MaybeTensor& min_p, double min_p_value,
                      const MaybeTensor& penalty, double penalty_value, double contrast_alpha,
                      int64_t contrast_k, const MaybeTensor& seed, int64_t seed_value) {
    if (args_.seen == nullptr && (penalty || penalty_value != 1.0)) {
      refuse("seen = None: penalty needs the tokens seen so far");
    }
    const Shape groups = {args_.groups};
    args_.temperature = hold<float>("temperature", temperature, groups, ScalarType::Float);
    args_.top_k = hold<int32_t>("top_k", top_k, groups, ScalarType::Int);
    args_.top_p = hold<float>("top_p", top_p, groups, ScalarType::Float);
    args_.min_p = hold<float>("min_p", min_p, groups, ScalarType::Float);
    args_.penalty = hold<float>("penalty", penalty, groups, ScalarType::Float);
    args_.seed = hold<int64_t>("seed", seed, groups, ScalarType::Long);
    args_.temperature_value = static_cast<float>(temperature_value);
    args_.top_k_value = int32_of("top_k", top_k_value);
    args_.top_p_value = static_cast<float>(top_p_value);
    args_.min_p_value = static_cast<float>(min_p_value);
    args_.penalty_value = static_cast<float>(penalty_value);
    args_.seed_value = seed_value;
    if (contrast_k != 0 || contrast_alpha != 0.0) set_contrast(contrast_alpha, contrast_k);
  }

  void set_step(const MaybeTensor& step, int64_t step_value) {
    args_.step = hold<int64_t>("step", step, {args_.groups}, ScalarType::Long);
    args_.step_value = step_value;
  }

 private:
  // The tensor's elements, which live as long as this.
  template <typename T>
  const T* hold(const char* name, const MaybeTensor& tensor, const Shape& shape, ScalarType dtype) {
    if (!tensor) return nullptr;
    held_.push_back(check_tensor(name, *tensor, shape, dtype, "logits"));
    return read<T>(held_.back());
  }

  // Rows that overlap are copied; those that are all the same one are not.
  static Tensor with_separate_rows(const Tensor& rows) {
    const int64_t stride = rows.stride(0);
    return stride > 0 && stride < rows.size(1) ? torch::stable::contiguous(rows) : rows;
  }

  static int64_t row_stride(const Tensor& rows) {
    return rows.stride(0) == 0 ? FASTDECODE_REPEAT : rows.stride(0);
  }

  static int32_t int32_of(const char* name, int64_t value) {
    using Limits = std::numeric_limits<int32_t>;
    if (value < Limits::min() || value > Limits::max()) {
      refuse(name, " = ", value, ": must fit torch.int32");
    }
    return static_cast<int32_t>(value);
  }

  void check_logits(const Tensor& logits) {
    if (logits.dim() != 2) {
      refuse("logits.shape = ", text_of(shape_of(logits)), ": must be (rows, vocab)");
    }
    const std::optional<int32_t> dtype = float_dtype(logits);
    if (!dtype) {
      refuse("logits.dtype = ", text_of(logits.scalar_type()),
             ": must be float32, bfloat16 or float16");
    }
    const int64_t rows = logits.size(0), vocab = logits.size(1);
    if (vocab > 1 && logits.stride(1) != 1) {
      refuse("logits.stride(1) = ", logits.stride(1), ": must be 1");
    }
    if (vocab < 1 || vocab > kMaxVocab) {
      refuse("logits.shape[1] = ", vocab, ": must be in [1, ", kMaxVocab, "]");
    }
    check_device("logits", logits, "this backend");
    held_.push_back(with_separate_rows(logits));
    args_.logits = held_.back().const_data_ptr();
    args_.dtype = *dtype;
    args_.rows = rows;
    args_.vocab = vocab;
    args_.row_stride = row_stride(held_.back());
  }

  void set_streams(const Tensor& logits, const MaybeTensor& streams, const MaybeTensor& weights) {
    args_.groups = logits.size(0);
    if (streams) {
      const Shape shape = shape_of(*streams);
      if (shape.size() != 2 || shape[1] < 1) {
        refuse("streams.shape = ", text_of(shape), ": must be (groups, S), S >= 1");
      }
      args_.streams = hold<int32_t>("streams", streams, shape, ScalarType::Int);
      args_.groups = shape[0];
      args_.streams_per_group = shape[1];
    }
    args_.weights =
        hold<float>("weights", weights, {args_.groups, args_.streams_per_group}, ScalarType::Float);
  }

  // Its rows may lie apart.
  void set_noise(const Tensor& noise) {
    const Shape shape = {args_.groups, args_.vocab};
    if (noise.dim() == 2 && args_.vocab > 1 && noise.stride(1) != 1) {
      refuse("noise.stride(1) = ", noise.stride(1), ": must be 1");
    }
    if (shape_of(noise) != shape) {
      refuse("noise.shape = ", text_of(shape_of(noise)), ": must be ", text_of(shape));
    }
    if (noise.scalar_type() != ScalarType::Float) {
      refuse("noise.dtype = ", text_of(noise.scalar_type()), ": must be torch.float32");
    }
    check_device("noise", noise, "logits");
    held_.push_back(with_separate_rows(noise));
    args_.noise = read<float>(held_.back());
    args_.noise_stride = row_stride(held_.back());
  }

  void set_contrast(double alpha, int64_t k) {
    if (!(alpha >= 0 && alpha <= 1)) refuse("contrast[0] = ", alpha, ": must be in [0, 1]");
    if (k < 1) refuse("contrast[1] = ", k, ": must be >= 1");
    args_.contrast_alpha = static_cast<float>(alpha);
    args_.contrast_k = static_cast<int32_t>(std::min(k, kMaxVocab));
  }

  fastdecode_sample_args args_;
  std::vector<Tensor> held_;
  MaybeTensor token_, logprob_, kept_, status_;
};

// The tables of a grammar, as given.
struct Tables {
  const Tensor &set_of, &tight_set_of, &room, &forced, &following, &class_ranges;
};

// The state of the groups, as given; what is written must be contiguous.
struct State {
  const Tensor &mode, &step, &finished;
  const MaybeTensor &limit, &inputs, &lengths, &seen, &sequences;
};

// fastdecode_advance_args with the tensors that it points to.
class AdvanceCall {
 public:
  AdvanceCall(const Tables& tables, int64_t vocab) {
    fastdecode_advance_args_init(&args_);
    const Tensor& following = tables.following;
    if (following.dim() != 2 || following.size(1) < 1) {
      refuse("following.shape = ", text_of(shape_of(following)), ": must be (modes, classes)");
    }
    fastdecode_grammar& grammar = args_.grammar;
    const int64_t modes = following.size(0);
    grammar.modes = modes;
    grammar.classes = following.size(1);
    grammar.set_of = table("set_of", tables.set_of, {modes});
    grammar.tight_set_of = table("tight_set_of", tables.tight_set_of, {modes});
    grammar.room = table("room", tables.room, {modes});
    grammar.forced = table("forced", tables.forced, {modes});
    grammar.following = table("following", following, {modes, grammar.classes});
    if (tables.class_ranges.dim() == 0) refuse("class_ranges: must be (n, 3), got one number");
    grammar.class_range_count = tables.class_ranges.size(0);
    grammar.class_ranges =
        table("class_ranges", tables.class_ranges, {grammar.class_range_count, 3});
    args_.vocab = vocab;
  }

  fastdecode_advance_args& args() { return args_; }

  void set_state(const State& state, int64_t groups, int64_t rows) {
    args_.groups = groups;
    args_.rows = rows;
    args_.mode = place<int32_t>("mode", state.mode, {groups}, ScalarType::Int);
    args_.step = place<int64_t>("step", state.step, {groups}, ScalarType::Long);
    args_.finished = place<uint8_t>("finished", state.finished, {groups}, ScalarType::Byte);
    args_.limit = place<int64_t>("limit", state.limit, {groups}, ScalarType::Long);
    args_.inputs = place<int64_t>("inputs", state.inputs, {rows}, ScalarType::Long);
    args_.lengths = place<int64_t>("lengths", state.lengths, {rows}, ScalarType::Long);
    args_.seen =
        place<int32_t>("seen", state.seen, {groups, (args_.vocab + 31) / 32}, ScalarType::Int);
    const MaybeTensor& sequences = state.sequences;
    args_.capacity = sequences && sequences->dim() == 2 ? sequences->size(1) : 0;
    args_.sequences =
        place<int64_t>("sequences", sequences, {groups, args_.capacity}, ScalarType::Long);
    if (sequences && args_.capacity == 0 && groups > 0) {
      refuse("state.sequences: must have room for a token");
    }
  }

  void set_streams(const Tensor& streams) {
    held_.push_back(streams);
    args_.streams = read<int32_t>(streams);
    args_.streams_per_group = streams.size(1);
  }

 private:
  const int32_t* table(const char* name, const Tensor& tensor, const Shape& shape) {
    if (shape_of(tensor) != shape || tensor.scalar_type() != ScalarType::Int || !tensor.is_cpu()) {
      refuse(name, ": must be ", text_of(shape), " int32 on cpu, got ", located(tensor));
    }
    held_.push_back(check_tensor(name, tensor, shape, ScalarType::Int, "tables"));
    return read<int32_t>(held_.back());
  }

  template <typename T>
  T* place(const char* name, const MaybeTensor& tensor, const Shape& shape, ScalarType dtype) {
    if (!tensor) return nullptr;
    if (shape_of(*tensor) != shape || tensor->scalar_type() != dtype || !tensor->is_cpu()) {
      refuse("state.", name, ": must be ", text_of(shape), " ", text_of(dtype), " on cpu, got ",
             located(*tensor));
    }
    if (!tensor->is_contiguous()) {
      refuse("state.", name, ": must be contiguous, since it is written in place");
    }
    return written<T>(*tensor);
  }

  fastdecode_advance_args args_;
  std::vector<Tensor> held_;
};

}  // namespace

Sampled sample(Tensor logits, MaybeTensor streams, MaybeTensor weights, MaybeTensor ranges,
               MaybeTensor set_offsets, int64_t /*largest_set*/, MaybeTensor set_index,
               MaybeTensor temperature, double temperature_value, MaybeTensor top_k,
               int64_t top_k_value, MaybeTensor top_p, double top_p_value, MaybeTensor min_p,
               double min_p_value, MaybeTensor penalty, double penalty_value, double contrast_alpha,
               int64_t contrast_k, MaybeTensor seed, int64_t seed_value, MaybeTensor seen,
               MaybeTensor step, int64_t step_value, MaybeTensor noise, MaybeString backend) {
  if (ranges.has_value() != set_offsets.has_value()) {
    refuse("ranges, set_offsets: must be given together");
  }
  check_backend(backend);
  SampleCall call(logits, streams, weights, seen, noise);
  if (ranges) call.set_sets(check_sets(*ranges, *set_offsets));
  call.set_set_index(set_index);
  call.set_parameters(temperature, temperature_value, top_k, top_k_value, top_p, top_p_value, min_p,
                      min_p_value, penalty, penalty_value, contrast_alpha, contrast_k, seed,
                      seed_value);
  call.set_step(step, step_value);
  require(fastdecode_sample(&call.args()));
  return call.result();
}

void advance(Tensor token, Tensor ranges, Tensor set_offsets, int64_t /*largest_set*/,
             Tensor set_of, Tensor tight_set_of, Tensor room, Tensor forced, Tensor following,
             Tensor class_ranges, int64_t vocab, Tensor mode, Tensor step, Tensor finished,
             MaybeTensor limit, MaybeTensor inputs, MaybeTensor lengths, MaybeTensor seen,
             MaybeTensor sequences, MaybeTensor streams, MaybeString backend) {
  check_backend(backend);
  if (token.dim() != 1 || token.scalar_type() != ScalarType::Long || !token.is_cpu()) {
    refuse("token: must be (groups,) int64, got ", described(token));
  }
  check_sets(ranges, set_offsets);  // nothing is sampled from them here
  const int64_t groups = token.size(0);
  AdvanceCall call({set_of, tight_set_of, room, forced, following, class_ranges}, vocab);
  MaybeTensor rows_of;
  if (streams) {
    if (streams->dim() != 2 || streams->size(1) < 1) {
      refuse("streams.shape = ", text_of(shape_of(*streams)), ": must be (groups, S), S >= 1");
    }
    rows_of =
        check_tensor("streams", *streams, {groups, streams->size(1)}, ScalarType::Int, "token");
  }
  const MaybeTensor& per_row = inputs ? inputs : lengths;
  if (!per_row) rows_of = std::nullopt;  // nothing is written per stream
  const int64_t rows = per_row && per_row->dim() == 1 ? per_row->size(0) : groups;
  if (!rows_of && rows < groups) {
    refuse("streams = None: needs a row for each of the ", groups, " groups, got ", rows);
  }
  call.set_state({mode, step, finished, limit, inputs, lengths, seen, sequences}, groups, rows);
  if (rows_of) call.set_streams(*rows_of);
  const Tensor tokens = check_tensor("token", token, {groups}, ScalarType::Long, "token");
  call.args().token = read<int64_t>(tokens);
  require(fastdecode_advance(&call.args()));
}

Sampled sample_advance(Tensor logits, Tensor ranges, Tensor set_offsets, int64_t /*largest_set*/,
                       Tensor set_of, Tensor tight_set_of, Tensor room, Tensor forced,
                       Tensor following, Tensor class_ranges, int64_t vocab, Tensor mode,
                       Tensor step, Tensor finished, MaybeTensor limit, MaybeTensor inputs,
                       MaybeTensor lengths, MaybeTensor seen, MaybeTensor sequences,
                       MaybeTensor streams, MaybeTensor weights, MaybeTensor temperature,
                       double temperature_value, MaybeTensor top_k, int64_t top_k_value,
                       MaybeTensor top_p, double top_p_value, MaybeTensor min_p, double min_p_value,
                       MaybeTensor penalty, double penalty_value, double contrast_alpha,
                       int64_t contrast_k, MaybeTensor seed, int64_t seed_value, MaybeTensor noise,
                       MaybeString backend) {
  check_backend(backend);
  SampleCall sampled(logits, streams, weights, seen, noise);
  fastdecode_sample_args& args = sampled.args();
  if (vocab != args.vocab) {
    refuse("tables.vocab = ", vocab, ": must be ", args.vocab, ", as for logits");
  }
  sampled.set_sets(check_sets(ranges, set_offsets));
  sampled.set_parameters(temperature, temperature_value, top_k, top_k_value, top_p, top_p_value,
                         min_p, min_p_value, penalty, penalty_value, contrast_alpha, contrast_k,
                         seed, seed_value);
  AdvanceCall advanced({set_of, tight_set_of, room, forced, following, class_ranges}, vocab);
  advanced.set_state({mode, step, finished, limit, inputs, lengths, seen, sequences}, args.groups,
                     args.rows);
  args.seen = advanced.args().seen;
  require(fastdecode_sample_advance(&args, &advanced.args()));
  return sampled.result();
}

}  // namespace fastdecode::torch_ops
