// fastdecode._C: passes pointers, which Python holds as integers, to the C interface. It knows
// nothing of torch: its callers in fastdecode/ops and fastdecode/decoder check shapes and dtypes,
// and keep the tensors alive. Calls that may take long release the GIL.
//
// It uses Python's stable ABI only, so that one build serves every Python from 3.11 on. Every
// function gets its arguments as an array (METH_FASTCALL).

#include <Python.h>

#include <cstdint>
#include <type_traits>

#include "core/numerics.h"
#include "core/philox.h"
#include "fastdecode/fastdecode.h"

namespace {

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// None, or null with the exception set that `result` stands for.
PyObject* outcome(fastdecode_result result) {
  if (result == FASTDECODE_OK) Py_RETURN_NONE;
  const bool invalid = result == FASTDECODE_INVALID_ARGUMENT;
  PyErr_SetString(invalid ? PyExc_ValueError : PyExc_RuntimeError, fastdecode_last_error());
  return nullptr;
}

// Calls `run` without the GIL.
template <typename Run>
PyObject* outcome_of(Run run) {
  PyThreadState* state = PyEval_SaveThread();
  const fastdecode_result result = run();
  PyEval_RestoreThread(state);
  return outcome(result);
}

// Reads numbers from a tuple or from a function's arguments, in order. The first that cannot be
// read sets a Python exception; those after it are skipped, and end() is false.
class Fields {
 public:
  explicit Fields(PyObject* tuple) : tuple_(tuple) {
    if (PyTuple_Check(tuple)) {
      count_ = PyTuple_Size(tuple);
    } else {
      fail(PyExc_TypeError, "the fields must be a tuple");
    }
  }
  Fields(PyObject* const* arguments, Py_ssize_t count) : arguments_(arguments), count_(count) {}

  template <typename T>
  void operator()(T*& field) {
    field = pointer<T>(integer());
  }
  template <typename T>
  void operator()(T& field) {
    if constexpr (std::is_floating_point_v<T>) {
      PyObject* object = next();
      if (object == nullptr) return;
      const double value = PyFloat_AsDouble(object);
      if (value == -1.0 && PyErr_Occurred() != nullptr) ok_ = false;
      field = static_cast<T>(value);
    } else {
      const int64_t value = integer();
      field = static_cast<T>(value);
      if (static_cast<int64_t>(field) != value) fail(PyExc_ValueError, "a field is too large");
    }
  }

  // True if every number could be read and none is left over.
  bool end() {
    if (ok_ && read_ != count_) fail(PyExc_TypeError, "too many fields");
    return ok_;
  }

 private:
  int64_t integer() {
    PyObject* object = next();
    if (object == nullptr) return 0;
    const long long value = PyLong_AsLongLong(object);
    if (value != -1 || PyErr_Occurred() == nullptr) return value;
    ok_ = false;
    return 0;
  }

  PyObject* next() {
    if (!ok_) return nullptr;
    if (read_ == count_) return fail(PyExc_TypeError, "too few fields");
    const Py_ssize_t i = read_++;
    return tuple_ != nullptr ? PyTuple_GetItem(tuple_, i) : arguments_[i];
  }

  PyObject* fail(PyObject* exception, const char* message) {
    if (ok_) PyErr_SetString(exception, message);
    ok_ = false;
    return nullptr;
  }

  PyObject* tuple_ = nullptr;
  PyObject* const* arguments_ = nullptr;
  Py_ssize_t count_ = 0;
  Py_ssize_t read_ = 0;
  bool ok_ = true;
};

// The functions of this module, as METH_FASTCALL calls them.
using Arguments = PyObject* const*;

bool exactly(Py_ssize_t wanted, Py_ssize_t count) {
  if (count == wanted) return true;
  PyErr_Format(PyExc_TypeError, "takes %zd arguments, not %zd", wanted, count);
  return false;
}

bool fill(fastdecode_sample_args& a, PyObject* fields) {
  fastdecode_sample_args_init(&a);
  Fields read(fields);
  read(a.logits), read(a.dtype), read(a.threads), read(a.rows), read(a.vocab), read(a.row_stride);
  read(a.groups), read(a.streams_per_group), read(a.streams), read(a.weights);
  read(a.ranges), read(a.set_offsets), read(a.sets), read(a.set_index);
  read(a.temperature), read(a.top_k), read(a.top_p), read(a.min_p), read(a.penalty);
  read(a.seed), read(a.step);
  read(a.temperature_value), read(a.top_k_value), read(a.top_p_value), read(a.min_p_value);
  read(a.penalty_value), read(a.seed_value), read(a.step_value);
  read(a.contrast_alpha), read(a.contrast_k), read(a.seen), read(a.noise), read(a.noise_stride);
  read(a.token), read(a.logprob), read(a.kept), read(a.status);
  return read.end();
}

bool fill(fastdecode_advance_args& a, PyObject* fields) {
  fastdecode_advance_args_init(&a);
  Fields read(fields);
  fastdecode_grammar& g = a.grammar;
  read(g.modes), read(g.classes), read(g.set_of), read(g.tight_set_of), read(g.room);
  read(g.forced), read(g.following), read(g.class_ranges), read(g.class_range_count);
  read(a.groups), read(a.streams_per_group), read(a.streams), read(a.rows), read(a.vocab);
  read(a.token), read(a.mode), read(a.step), read(a.limit), read(a.finished), read(a.inputs);
  read(a.lengths), read(a.seen), read(a.sequences), read(a.capacity);
  return read.end();
}

// The first fields of an operation on heads.
template <typename Args>
void read_heads(Fields& read, Args& a) {
  read(a.rows), read(a.heads), read(a.kv_heads), read(a.head_dim), read(a.dtype), read(a.threads);
}

// Where the keys and values of a call lie.
template <typename Args>
void read_pages(Fields& read, Args& a) {
  read(a.pages), read(a.page_slots), read(a.table), read(a.table_stride), read(a.table_width);
}

bool fill(fastdecode_rope_append_args& a, PyObject* fields) {
  fastdecode_rope_append_args_init(&a);
  Fields read(fields);
  read_heads(read, a);
  read(a.qkv), read(a.q_norm), read(a.q_norm_bias), read(a.k_norm), read(a.k_norm_bias);
  read(a.epsilon), read(a.cos), read(a.sin);
  read_pages(read, a);
  read(a.lengths), read(a.keys), read(a.values), read(a.queries);
  return read.end();
}

bool fill(fastdecode_attend_args& a, PyObject* fields) {
  fastdecode_attend_args_init(&a);
  Fields read(fields);
  read_heads(read, a);
  read(a.scale), read(a.queries), read(a.keys), read(a.values);
  read_pages(read, a);
  read(a.lengths), read(a.out);
  return read.end();
}

// The first field, `layers`, is the address of fastdecode_layer[layer_count]. Python fills that
// array, and those of fastdecode_weights, as arrays of 64-bit numbers.
static_assert(sizeof(fastdecode_layer) == 23 * sizeof(int64_t), "an address takes 64 bits");

bool fill(fastdecode_decode_args& a, PyObject* fields) {
  fastdecode_decode_args_init(&a);
  Fields read(fields);
  read(a.layers), read(a.layer_count), read(a.hidden), read(a.inner), read(a.heads);
  read(a.kv_heads), read(a.head_dim), read(a.dtype), read(a.swin), read(a.activation);
  read(a.epsilon), read(a.qk_epsilon), read(a.scale), read(a.norm), read(a.threads);
  read_pages(read, a);
  read(a.chained), read(a.stores_only), read(a.rows), read(a.lengths), read(a.cos), read(a.sin),
      read(a.x);
  return read.end();
}

// A function that takes one tuple: the fields of `Args`.
template <typename Args, fastdecode_result (*function)(const Args*)>
PyObject* with_fields(PyObject*, Arguments arguments, Py_ssize_t count) {
  Args a;
  if (!exactly(1, count) || !fill(a, arguments[0])) return nullptr;
  return outcome_of([&] { return function(&a); });
}

// The same, too short to be worth releasing the GIL.
template <typename Args, fastdecode_result (*function)(const Args*)>
PyObject* with_fields_at_once(PyObject*, Arguments arguments, Py_ssize_t count) {
  Args a;
  if (!exactly(1, count) || !fill(a, arguments[0])) return nullptr;
  return outcome(function(&a));
}

PyObject* sample_advance(PyObject*, Arguments arguments, Py_ssize_t count) {
  fastdecode_sample_args sample;
  fastdecode_advance_args advance;
  if (!exactly(2, count) || !fill(sample, arguments[0]) || !fill(advance, arguments[1])) {
    return nullptr;
  }
  return outcome_of([&] { return fastdecode_sample_advance(&sample, &advance); });
}

// How weights are stored, as five fields.
void read_how(Fields& read, fastdecode_weights& how) {
  read(how.type), read(how.group), read(how.scale), read(how.offset), read(how.first);
}

PyObject* linear(PyObject*, Arguments arguments, Py_ssize_t count) {
  const void* weight;
  fastdecode_weights how;
  const float *bias, *x;
  float* out;
  int64_t rows, k, features, out_stride;
  int threads;
  Fields read(arguments, count);
  read(weight), read_how(read, how), read(bias), read(x), read(rows), read(k), read(features);
  read(out), read(out_stride), read(threads);
  if (!read.end()) return nullptr;
  return outcome_of([&] {
    return fastdecode_linear_of(weight, &how, bias, x, rows, k, features, out, out_stride, threads);
  });
}

PyObject* rms_norm(PyObject*, Arguments arguments, Py_ssize_t count) {
  const float *x, *residual, *weight;
  float epsilon = 0.0f, *sum, *out;
  int64_t rows, n;
  int threads;
  Fields read(arguments, count);
  read(x), read(residual), read(weight), read(epsilon), read(rows), read(n), read(sum), read(out);
  read(threads);
  if (!read.end()) return nullptr;
  return outcome(fastdecode_rms_norm(x, residual, weight, epsilon, rows, n, sum, out, threads));
}

PyObject* glu(PyObject*, Arguments arguments, Py_ssize_t count) {
  const float* gate_up;
  float* out;
  int64_t rows, inner;
  int activation, threads;
  Fields read(arguments, count);
  read(gate_up), read(activation), read(rows), read(inner), read(out), read(threads);
  if (!read.end()) return nullptr;
  return outcome(fastdecode_glu(gate_up, activation, rows, inner, out, threads));
}

PyObject* embed(PyObject*, Arguments arguments, Py_ssize_t count) {
  const int64_t* tokens;
  const void* weight;
  fastdecode_weights how;
  float* out;
  int64_t rows, vocab, hidden;
  int threads;
  Fields read(arguments, count);
  read(tokens), read(rows), read(weight), read_how(read, how), read(vocab), read(hidden);
  read(out), read(threads);
  if (!read.end()) return nullptr;
  return outcome(fastdecode_embed_of(tokens, rows, weight, &how, vocab, hidden, out, threads));
}

PyObject* cpu_isa(PyObject*, PyObject*) {
  const char* name = fastdecode_cpu_isa();
  if (name == nullptr) return outcome(FASTDECODE_INVALID_ARGUMENT);
  return PyUnicode_FromString(name);
}

PyObject* abi_version(PyObject*, PyObject*) {
  return PyLong_FromLong(fastdecode_abi_version());
}

// The arithmetic of csrc/core, elementwise over n values: tests compare it with
// fastdecode/ops/numerics.py. out[i] = function(in[i]).
template <typename In, typename Out, Out (*function)(In)>
PyObject* elementwise(PyObject*, Arguments arguments, Py_ssize_t count) {
  const In* in;
  Out* out;
  int64_t n;
  Fields read(arguments, count);
  read(in), read(out), read(n);
  if (!read.end()) return nullptr;
  for (int64_t i = 0; i < n; ++i) out[i] = function(in[i]);
  Py_RETURN_NONE;
}

// Gumbel noise from pairs of Philox words.
PyObject* gumbel_of(PyObject*, Arguments arguments, Py_ssize_t count) {
  const uint32_t *word0, *word1;
  float* out;
  int64_t n;
  Fields read(arguments, count);
  read(word0), read(word1), read(out), read(n);
  if (!read.end()) return nullptr;
  for (int64_t i = 0; i < n; ++i) out[i] = fastdecode::gumbel_of(word0[i], word1[i]);
  Py_RETURN_NONE;
}

// Gumbel noise of the tokens [first_id, first_id + n).
PyObject* gumbel_noise(PyObject*, Arguments arguments, Py_ssize_t count) {
  int64_t seed, step, first_id, n;
  float* out;
  Fields read(arguments, count);
  read(seed), read(step), read(first_id), read(out), read(n);
  if (!read.end()) return nullptr;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = fastdecode::gumbel_noise(static_cast<uint64_t>(seed), static_cast<uint64_t>(step),
                                      static_cast<uint32_t>(first_id + i));
  }
  Py_RETURN_NONE;
}

PyMethodDef array(const char* name, PyObject* (*function)(PyObject*, Arguments, Py_ssize_t)) {
  const auto erased = reinterpret_cast<void (*)()>(function);
  return {name, reinterpret_cast<PyCFunction>(erased), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    array("sample", with_fields<fastdecode_sample_args, fastdecode_sample>),
    array("advance", with_fields_at_once<fastdecode_advance_args, fastdecode_advance>),
    array("sample_advance", sample_advance),
    array("decode_step", with_fields<fastdecode_decode_args, fastdecode_decode_step>),
    array("linear", linear),
    array("rms_norm", rms_norm),
    array("glu", glu),
    array("embed", embed),
    array("rope_append", with_fields_at_once<fastdecode_rope_append_args, fastdecode_rope_append>),
    array("attend", with_fields<fastdecode_attend_args, fastdecode_attend>),
    {"cpu_isa", cpu_isa, METH_NOARGS, nullptr},
    {"abi_version", abi_version, METH_NOARGS, nullptr},
    array("exp_f32", elementwise<float, float, fastdecode::exp_f32>),
    array("log_f32", elementwise<float, float, fastdecode::log_f32>),
    array("mass_of", elementwise<float, int64_t, fastdecode::mass_of>),
    array("gumbel_of", gumbel_of),
    array("gumbel_noise", gumbel_noise),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {
#if defined(Py_GIL_DISABLED)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Pointers in, nothing out: the C interface of fastdecode.",
    0,
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return PyModuleDef_Init(&definition);
}
