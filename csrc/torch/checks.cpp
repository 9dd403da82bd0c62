#include "torch/checks.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace fastdecode::torch_ops {
namespace {

int64_t dimensions(const char* layout) {
  return std::count(layout, layout + std::strlen(layout), ',') + 1;
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

}  // namespace

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string text_of(ScalarType dtype) {
  constexpr std::pair<ScalarType, const char*> kNames[] = {
      {ScalarType::Float, "torch.float32"},
      {ScalarType::Double, "torch.float64"},
      {ScalarType::Half, "torch.float16"},
      {ScalarType::BFloat16, "torch.bfloat16"},
      {ScalarType::Bool, "torch.bool"},
      {ScalarType::Byte, "torch.uint8"},
      {ScalarType::Char, "torch.int8"},
      {ScalarType::Short, "torch.int16"},
      {ScalarType::Int, "torch.int32"},
      {ScalarType::Long, "torch.int64"},
      {ScalarType::Float8_e4m3fn, "torch.float8_e4m3fn"},
  };
  for (const auto& [named, name] : kNames) {
    if (named == dtype) return name;
  }
  return torch::headeronly::toString(dtype);
}

std::string described(const Tensor& tensor) {
  return text_of(shape_of(tensor)) + " " + text_of(tensor.scalar_type());
}

std::string located(const Tensor& tensor) {
  return described(tensor) + " on " + device_of(tensor);
}

void check_backend(const MaybeString& backend) {
  if (backend && *backend != "cpu") {
    refuse("backend = '", *backend,
           "': must be 'cpu' or None, since libfastdecode_torch.so has no other; ",
           "Python has others where fastdecode.ops is imported before that library is loaded");
  }
}

void check_device(const char* name, const Tensor& tensor, const char* like) {
  if (!tensor.is_cpu()) {
    refuse(name, ".device = ", device_of(tensor), ": must be cpu, as for ", like);
  }
}

Tensor check_tensor(const char* name, const Tensor& tensor, const Shape& shape, ScalarType dtype,
                    const char* like) {
  if (shape_of(tensor) != shape) {
    refuse(name, ".shape = ", text_of(shape_of(tensor)), ": must be ", text_of(shape));
  }
  if (tensor.scalar_type() != dtype) {
    refuse(name, ".dtype = ", text_of(tensor.scalar_type()), ": must be ", text_of(dtype));
  }
  check_device(name, tensor, like);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

MaybeTensor check_tensor(const char* name, const MaybeTensor& tensor, const Shape& shape,
                         ScalarType dtype, const char* like) {
  if (!tensor) return std::nullopt;
  return check_tensor(name, *tensor, shape, dtype, like);
}

Tensor check_floats(const char* name, const Tensor& tensor, const char* layout) {
  const Shape shape = shape_of(tensor);
  const bool fits = static_cast<int64_t>(shape.size()) == dimensions(layout);
  if (!fits || std::count(shape.begin() + 1, shape.end(), 0) > 0) {
    refuse(name, ".shape = ", text_of(shape), ": must be (", layout, ")");
  }
  return check_tensor(name, tensor, shape, ScalarType::Float, name);
}

int32_t check_stored(const char* name, const Tensor& tensor, const char* layout, const char* like) {
  if (tensor.dim() != dimensions(layout)) {
    refuse(name, ".shape = ", text_of(shape_of(tensor)), ": must be (", layout, ")");
  }
  const std::optional<int32_t> dtype = float_dtype(tensor);
  if (!dtype) {
    refuse(name, ".dtype = ", text_of(tensor.scalar_type()),
           ": must be float32, bfloat16 or float16");
  }
  check_device(name, tensor, like);
  if (!tensor.is_contiguous()) refuse(name, ": must be dense, as .contiguous() makes it");
  return *dtype;
}

std::optional<int32_t> float_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return FASTDECODE_FLOAT32;
    case ScalarType::BFloat16:
      return FASTDECODE_BFLOAT16;
    case ScalarType::Half:
      return FASTDECODE_FLOAT16;
    default:
      return std::nullopt;
  }
}

Tensor new_tensor(const Shape& shape, ScalarType dtype) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::empty(shape, dtype, std::nullopt, cpu);
}

int32_t threads() {
  return static_cast<int32_t>(torch::stable::get_num_threads());
}

}  // namespace fastdecode::torch_ops
