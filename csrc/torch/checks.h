// Checks of tensors, as fastdecode/ops/checks.py makes them in Python and in the same words. Each
// throws std::invalid_argument, which Python sees as ValueError, before anything is written. What
// tensors hold is checked by the C library.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastdecode/fastdecode.h"

namespace fastdecode::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeString = std::optional<std::string>;
using Shape = std::vector<int64_t>;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// Throws what the C library says if a call of it failed.
inline void require(fastdecode_result result) {
  if (result == FASTDECODE_INVALID_ARGUMENT) throw std::invalid_argument(fastdecode_last_error());
  if (result != FASTDECODE_OK) throw std::runtime_error(fastdecode_last_error());
}

Shape shape_of(const Tensor& tensor);
std::string text_of(const Shape& shape);      // as Python writes a tuple
std::string text_of(ScalarType dtype);        // as "torch.float32"
std::string described(const Tensor& tensor);  // shape and dtype
std::string located(const Tensor& tensor);    // shape, dtype and device

// Only the backend of this library may be named.
void check_backend(const MaybeString& backend);

// `like`: the argument, named in the message, that lies on the CPU.
void check_device(const char* name, const Tensor& tensor, const char* like);

// A tensor of this shape and dtype on the CPU, made contiguous.
Tensor check_tensor(const char* name, const Tensor& tensor, const Shape& shape, ScalarType dtype,
                    const char* like);
MaybeTensor check_tensor(const char* name, const MaybeTensor& tensor, const Shape& shape,
                         ScalarType dtype, const char* like);

// A float32 tensor of as many dimensions as `layout` names, each but the first at least 1, made
// contiguous.
Tensor check_floats(const char* name, const Tensor& tensor, const char* layout);

// A tensor that is never copied, as weights and pages. Returns its fastdecode_dtype.
int32_t check_stored(const char* name, const Tensor& tensor, const char* layout, const char* like);

// The fastdecode_dtype of float32, bfloat16 or float16.
std::optional<int32_t> float_dtype(const Tensor& tensor);

// Uninitialised, on the CPU.
Tensor new_tensor(const Shape& shape, ScalarType dtype);

// At most so many threads, as torch is set to.
int32_t threads();

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* read(const MaybeTensor& tensor) {
  return tensor ? read<T>(*tensor) : nullptr;
}

template <typename T>
T* written(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
T* written(const MaybeTensor& tensor) {
  return tensor ? written<T>(*tensor) : nullptr;
}

}  // namespace fastdecode::torch_ops
