// fastdecode._C: passes pointers, as integers, to the C interface. Knows nothing of torch; the
// callers in fastdecode/ops and fastdecode/decoder own shapes, dtypes and lifetimes. Releases the
// GIL while it works.

#include <pybind11/pybind11.h>

#include "core/numerics.h"
#include "core/philox.h"
#include "fastdecode/fastdecode.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(fastdecode_result result) {
  if (result == FASTDECODE_INVALID_ARGUMENT) throw py::value_error(fastdecode_last_error());
  if (result != FASTDECODE_OK) throw std::runtime_error(fastdecode_last_error());
}

void sample(uintptr_t logits, int32_t dtype, int32_t threads, int64_t rows, int64_t vocab,
            int64_t row_stride, int64_t groups, int64_t streams_per_group, uintptr_t streams,
            uintptr_t weights, uintptr_t ranges, uintptr_t set_offsets, int64_t sets,
            uintptr_t set_index, uintptr_t temperature, uintptr_t top_k, uintptr_t top_p,
            uintptr_t min_p, uintptr_t penalty, uintptr_t seed, uintptr_t step,
            float temperature_value, int32_t top_k_value, float top_p_value, float min_p_value,
            float penalty_value, int64_t seed_value, int64_t step_value, float contrast_alpha,
            int32_t contrast_k, uintptr_t seen, uintptr_t noise, int64_t noise_stride,
            uintptr_t token, uintptr_t logprob, uintptr_t kept, uintptr_t status) {
  fastdecode_sample_args args;
  fastdecode_sample_args_init(&args);
  args.logits = pointer<const void>(logits);
  args.dtype = dtype;
  args.threads = threads;
  args.rows = rows;
  args.vocab = vocab;
  args.row_stride = row_stride;
  args.groups = groups;
  args.streams_per_group = streams_per_group;
  args.streams = pointer<const int32_t>(streams);
  args.weights = pointer<const float>(weights);
  args.ranges = pointer<const int32_t>(ranges);
  args.set_offsets = pointer<const int32_t>(set_offsets);
  args.sets = sets;
  args.set_index = pointer<const int32_t>(set_index);
  args.temperature = pointer<const float>(temperature);
  args.top_k = pointer<const int32_t>(top_k);
  args.top_p = pointer<const float>(top_p);
  args.min_p = pointer<const float>(min_p);
  args.penalty = pointer<const float>(penalty);
  args.seed = pointer<const int64_t>(seed);
  args.step = pointer<const int64_t>(step);
  args.temperature_value = temperature_value;
  args.top_k_value = top_k_value;
  args.top_p_value = top_p_value;
  args.min_p_value = min_p_value;
  args.penalty_value = penalty_value;
  args.seed_value = seed_value;
  args.step_value = step_value;
  args.contrast_alpha = contrast_alpha;
  args.contrast_k = contrast_k;
  args.seen = pointer<const int32_t>(seen);
  args.noise = pointer<const float>(noise);
  args.noise_stride = noise_stride;
  args.token = pointer<int64_t>(token);
  args.logprob = pointer<float>(logprob);
  args.kept = pointer<int32_t>(kept);
  args.status = pointer<int32_t>(status);

  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_sample(&args);
  }
  check(result);
}

// `layers`: fastdecode_layer[layer_count], as an array of addresses.
static_assert(sizeof(fastdecode_layer) == 20 * sizeof(int64_t), "an address takes 64 bits");

void decode_step(uintptr_t layers, int64_t layer_count, int64_t hidden, int64_t inner,
                 int64_t heads, int64_t kv_heads, int64_t head_dim, bool swin, float epsilon,
                 float scale, uintptr_t norm, int64_t rows, int64_t slots, uintptr_t lengths,
                 uintptr_t cos, uintptr_t sin, uintptr_t x, int threads) {
  fastdecode_decode_args step;
  fastdecode_decode_args_init(&step);
  step.layers = pointer<const fastdecode_layer>(layers);
  step.layer_count = layer_count;
  step.hidden = hidden;
  step.inner = inner;
  step.heads = heads;
  step.kv_heads = kv_heads;
  step.head_dim = head_dim;
  step.swin = swin;
  step.epsilon = epsilon;
  step.scale = scale;
  step.norm = pointer<const float>(norm);
  step.rows = rows;
  step.slots = slots;
  step.lengths = pointer<const int64_t>(lengths);
  step.cos = pointer<const float>(cos);
  step.sin = pointer<const float>(sin);
  step.x = pointer<float>(x);
  step.threads = threads;
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_decode_step(&step);
  }
  check(result);
}

void linear(uintptr_t weight, uintptr_t bias, uintptr_t x, int64_t rows, int64_t k,
            int64_t features, uintptr_t out, int64_t out_stride, int threads) {
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_linear(pointer<const float>(weight), pointer<const float>(bias),
                               pointer<const float>(x), rows, k, features, pointer<float>(out),
                               out_stride, threads);
  }
  check(result);
}

const char* cpu_isa() {
  const char* name = fastdecode_cpu_isa();
  if (name == nullptr) throw py::value_error(fastdecode_last_error());
  return name;
}

// The shared arithmetic, elementwise over n float32 values, for tests against the torch mirror.
void exp_f32(uintptr_t x, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<float>(out)[i] = fastdecode::exp_f32(pointer<const float>(x)[i]);
  }
}

void log_f32(uintptr_t x, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<float>(out)[i] = fastdecode::log_f32(pointer<const float>(x)[i]);
  }
}

void mass_of(uintptr_t p, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<int64_t>(out)[i] = fastdecode::mass_of(pointer<const float>(p)[i]);
  }
}

// Noise from pairs of Philox words.
void gumbel_of(uintptr_t word0, uintptr_t word1, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<float>(out)[i] =
        fastdecode::gumbel_of(pointer<const uint32_t>(word0)[i], pointer<const uint32_t>(word1)[i]);
  }
}

// Noise of the ids [first_id, first_id + n) into out.
void gumbel_noise(int64_t seed, int64_t step, int64_t first_id, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<float>(out)[i] =
        fastdecode::gumbel_noise(static_cast<uint64_t>(seed), static_cast<uint64_t>(step),
                                 static_cast<uint32_t>(first_id + i));
  }
}

}  // namespace

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  module.doc() = "Pointers in, nothing out: the C interface of fastdecode.";
  module.def("sample", &sample);
  module.def("decode_step", &decode_step);
  module.def("linear", &linear);
  module.def("cpu_isa", &cpu_isa);
  module.def("abi_version", &fastdecode_abi_version);
  module.def("exp_f32", &exp_f32);
  module.def("log_f32", &log_f32);
  module.def("mass_of", &mass_of);
  module.def("gumbel_of", &gumbel_of);
  module.def("gumbel_noise", &gumbel_noise);
}
