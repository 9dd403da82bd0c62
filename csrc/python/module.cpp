// fastdecode._C: passes pointers, which Python holds as integers, to the C interface. It knows
// nothing of torch: its callers in fastdecode/ops and fastdecode/decoder check shapes and dtypes,
// and keep the tensors alive. Calls that may take long release the GIL.

#include <pybind11/pybind11.h>

#include <type_traits>

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

// Reads the fields of an argument struct from a tuple, in order. Every call does this, so it uses
// Python's own conversions, which take half the time of pybind11's.
class Fields {
 public:
  explicit Fields(const py::tuple& fields) : fields_(fields) {}

  template <typename T>
  void operator()(T*& field) {
    field = pointer<T>(static_cast<uintptr_t>(integer()));
  }
  template <typename T>
  void operator()(T& field) {
    if constexpr (std::is_floating_point_v<T>) {
      const double value = PyFloat_AsDouble(next().ptr());
      if (value == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
      field = static_cast<T>(value);
    } else {
      const long long value = integer();
      field = static_cast<T>(value);
      if (static_cast<long long>(field) != value) throw py::value_error("a field is too large");
    }
  }
  void end() const {
    if (read_ != fields_.size()) throw py::type_error("too many fields");
  }

 private:
  long long integer() {
    const long long value = PyLong_AsLongLong(next().ptr());
    if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return value;
  }

  py::handle next() {
    if (read_ == fields_.size()) throw py::type_error("too few fields");
    return fields_[read_++];
  }

  const py::tuple& fields_;
  size_t read_ = 0;
};

fastdecode_sample_args sample_args(const py::tuple& tuple) {
  fastdecode_sample_args a;
  fastdecode_sample_args_init(&a);
  Fields read(tuple);
  read(a.logits), read(a.dtype), read(a.threads), read(a.rows), read(a.vocab), read(a.row_stride);
  read(a.groups), read(a.streams_per_group), read(a.streams), read(a.weights);
  read(a.ranges), read(a.set_offsets), read(a.sets), read(a.set_index);
  read(a.temperature), read(a.top_k), read(a.top_p), read(a.min_p), read(a.penalty);
  read(a.seed), read(a.step);
  read(a.temperature_value), read(a.top_k_value), read(a.top_p_value), read(a.min_p_value);
  read(a.penalty_value), read(a.seed_value), read(a.step_value);
  read(a.contrast_alpha), read(a.contrast_k), read(a.seen), read(a.noise), read(a.noise_stride);
  read(a.token), read(a.logprob), read(a.kept), read(a.status);
  read.end();
  return a;
}

fastdecode_advance_args advance_args(const py::tuple& tuple) {
  fastdecode_advance_args a;
  fastdecode_advance_args_init(&a);
  Fields read(tuple);
  fastdecode_grammar& g = a.grammar;
  read(g.modes), read(g.classes), read(g.set_of), read(g.tight_set_of), read(g.room);
  read(g.forced), read(g.following), read(g.class_ranges), read(g.class_range_count);
  read(a.groups), read(a.streams_per_group), read(a.streams), read(a.rows), read(a.vocab);
  read(a.token), read(a.mode), read(a.step), read(a.limit), read(a.finished), read(a.inputs);
  read(a.lengths), read(a.seen), read(a.sequences), read(a.capacity);
  read.end();
  return a;
}

void sample(const py::tuple& fields) {
  const fastdecode_sample_args args = sample_args(fields);
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_sample(&args);
  }
  check(result);
}

void advance(const py::tuple& fields) {
  const fastdecode_advance_args args = advance_args(fields);
  check(fastdecode_advance(&args));
}

void sample_advance(const py::tuple& sample_fields, const py::tuple& advance_fields) {
  const fastdecode_sample_args sample = sample_args(sample_fields);
  const fastdecode_advance_args advance = advance_args(advance_fields);
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_sample_advance(&sample, &advance);
  }
  check(result);
}

// The first field, `layers`, is the address of fastdecode_layer[layer_count]. Python fills that
// array as one of 64-bit addresses.
static_assert(sizeof(fastdecode_layer) == 22 * sizeof(int64_t), "an address takes 64 bits");

void decode_step(const py::tuple& fields) {
  fastdecode_decode_args a;
  fastdecode_decode_args_init(&a);
  Fields read(fields);
  read(a.layers), read(a.layer_count), read(a.hidden), read(a.inner), read(a.heads);
  read(a.kv_heads), read(a.head_dim), read(a.dtype), read(a.swin), read(a.epsilon);
  read(a.qk_epsilon), read(a.scale), read(a.norm), read(a.threads);
  read(a.pages), read(a.page_slots), read(a.table), read(a.table_stride), read(a.table_width);
  read(a.chained), read(a.rows), read(a.lengths), read(a.cos), read(a.sin), read(a.x);
  read.end();
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_decode_step(&a);
  }
  check(result);
}

void linear(uintptr_t weight, int32_t dtype, uintptr_t bias, uintptr_t x, int64_t rows, int64_t k,
            int64_t features, uintptr_t out, int64_t out_stride, int threads) {
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_linear(pointer<const void>(weight), dtype, pointer<const float>(bias),
                               pointer<const float>(x), rows, k, features, pointer<float>(out),
                               out_stride, threads);
  }
  check(result);
}

void rms_norm(uintptr_t x, uintptr_t residual, uintptr_t weight, float epsilon, int64_t rows,
              int64_t n, uintptr_t sum, uintptr_t out, int threads) {
  check(fastdecode_rms_norm(pointer<const float>(x), pointer<const float>(residual),
                            pointer<const float>(weight), epsilon, rows, n, pointer<float>(sum),
                            pointer<float>(out), threads));
}

void swiglu(uintptr_t gate_up, int64_t rows, int64_t inner, uintptr_t out, int threads) {
  check(
      fastdecode_swiglu(pointer<const float>(gate_up), rows, inner, pointer<float>(out), threads));
}

void embed(uintptr_t tokens, int64_t rows, uintptr_t weight, int32_t dtype, int64_t vocab,
           int64_t hidden, uintptr_t out, int threads) {
  check(fastdecode_embed(pointer<const int64_t>(tokens), rows, pointer<const void>(weight), dtype,
                         vocab, hidden, pointer<float>(out), threads));
}

void rope_append(const py::tuple& fields) {
  fastdecode_rope_append_args a;
  fastdecode_rope_append_args_init(&a);
  Fields read(fields);
  read(a.rows), read(a.heads), read(a.kv_heads), read(a.head_dim), read(a.dtype), read(a.threads);
  read(a.qkv), read(a.q_norm), read(a.q_norm_bias), read(a.k_norm), read(a.k_norm_bias);
  read(a.epsilon), read(a.cos), read(a.sin);
  read(a.pages), read(a.page_slots), read(a.table), read(a.table_stride), read(a.table_width);
  read(a.lengths), read(a.keys), read(a.values), read(a.queries);
  read.end();
  check(fastdecode_rope_append(&a));
}

void attend(const py::tuple& fields) {
  fastdecode_attend_args a;
  fastdecode_attend_args_init(&a);
  Fields read(fields);
  read(a.rows), read(a.heads), read(a.kv_heads), read(a.head_dim), read(a.dtype), read(a.threads);
  read(a.scale), read(a.queries), read(a.keys), read(a.values);
  read(a.pages), read(a.page_slots), read(a.table), read(a.table_stride), read(a.table_width);
  read(a.lengths), read(a.out);
  read.end();
  fastdecode_result result;
  {
    py::gil_scoped_release released;
    result = fastdecode_attend(&a);
  }
  check(result);
}

const char* cpu_isa() {
  const char* name = fastdecode_cpu_isa();
  if (name == nullptr) throw py::value_error(fastdecode_last_error());
  return name;
}

// The arithmetic of csrc/core, elementwise over n values: tests compare it with
// fastdecode/ops/numerics.py.
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

// Gumbel noise from pairs of Philox words.
void gumbel_of(uintptr_t word0, uintptr_t word1, uintptr_t out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    pointer<float>(out)[i] =
        fastdecode::gumbel_of(pointer<const uint32_t>(word0)[i], pointer<const uint32_t>(word1)[i]);
  }
}

// Gumbel noise of the tokens [first_id, first_id + n).
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
  module.def("advance", &advance);
  module.def("sample_advance", &sample_advance);
  module.def("decode_step", &decode_step);
  module.def("linear", &linear);
  module.def("rms_norm", &rms_norm);
  module.def("swiglu", &swiglu);
  module.def("embed", &embed);
  module.def("rope_append", &rope_append);
  module.def("attend", &attend);
  module.def("cpu_isa", &cpu_isa);
  module.def("abi_version", &fastdecode_abi_version);
  module.def("exp_f32", &exp_f32);
  module.def("log_f32", &log_f32);
  module.def("mass_of", &mass_of);
  module.def("gumbel_of", &gumbel_of);
  module.def("gumbel_noise", &gumbel_noise);
}
