// A model.safetensors file, mapped into memory. Everything that its header says is checked, so that
// what is wrong with a file is a sentence here and not a crash later. The format: 8 bytes with the
// length of the header (little-endian), the header (JSON), then the tensors' bytes without gaps.
#pragma once

#include <fastdecode/fastdecode.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"

// A whole file, readable as long as this object lives.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY);
    if (file < 0) fail(path);
    struct stat status;
    const bool known = fstat(file, &status) == 0;
    if (known && status.st_size > 0) {
      size_ = static_cast<size_t>(status.st_size);
      void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      if (data != MAP_FAILED) data_ = static_cast<const char*>(data);
    }
    const int reason = errno;
    close(file);  // the mapping stays
    errno = reason;
    if (!known || (size_ > 0 && data_ == nullptr)) fail(path);
  }
  MappedFile(const MappedFile&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
  }

  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  [[noreturn]] static void fail(const std::string& path) {
    throw std::runtime_error(path + " cannot be read: " + std::strerror(errno));
  }
  const char* data_ = nullptr;
  size_t size_ = 0;
};

class SafeTensors {
 public:
  struct Tensor {
    std::string dtype;  // "F32", "BF16", "F16", ...
    std::vector<int64_t> shape;
    uint64_t begin, end;  // bytes behind the header
    const char* data;
  };

  explicit SafeTensors(const std::string& path) : path_(path), file_(path) {
    uint64_t length = 0;
    if (file_.size() < 8) fail("it has " + std::to_string(file_.size()) + " bytes, fewer than 8");
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(file_.data()[i]);
    if (length > file_.size() - 8) {
      fail("its header should have " + std::to_string(length) + " bytes, and the whole file has " +
           std::to_string(file_.size()));
    }
    const char* header = file_.data() + 8;
    data_ = header + length;
    const Json json = JsonReader::read(header, data_, "the header of " + path);
    if (json.kind != Json::kObject) fail("its header is not a JSON object");
    for (const auto& [name, entry] : json.members) {
      if (name != "__metadata__") tensors_[name] = read(name, entry);
    }
    check_layout();
  }

  // The tensor of that name. Throws where it is missing, or of another shape, or of a dtype that
  // the library does not compute with.
  const Tensor& get(const std::string& name, const std::vector<int64_t>& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("tensor " + name + " is missing");
    const Tensor& tensor = found->second;
    if (tensor.shape != shape) {
      fail("tensor " + name + " is " + text(tensor.shape) + "; config.json asks for " +
           text(shape));
    }
    if (dtype_of(tensor) < 0) {
      fail("tensor " + name + " is " + tensor.dtype + "; it must be F32, BF16 or F16");
    }
    if (reinterpret_cast<uintptr_t>(tensor.data) % (tensor.dtype == "F32" ? 4 : 2) != 0) {
      fail("tensor " + name + " begins at an address that its numbers must not have: byte " +
           std::to_string(tensor.data - file_.data()) + " of the file");
    }
    return tensor;
  }

  // The fastdecode_dtype, or -1.
  static int32_t dtype_of(const Tensor& tensor) {
    if (tensor.dtype == "F32") return FASTDECODE_FLOAT32;
    if (tensor.dtype == "BF16") return FASTDECODE_BFLOAT16;
    return tensor.dtype == "F16" ? FASTDECODE_FLOAT16 : -1;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(path_ + ": " + what);
  }

  static std::string text(const std::vector<int64_t>& shape) {
    std::string text;
    for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "(" + text + ")";
  }

  Tensor read(const std::string& name, const Json& entry) const {
    const Json *dtype = entry.find("dtype"), *shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (dtype == nullptr || dtype->kind != Json::kString || shape == nullptr ||
        shape->kind != Json::kArray || offsets == nullptr || offsets->items.size() != 2) {
      fail("tensor " + name + " needs a dtype, a shape and two data_offsets in the header");
    }
    Tensor tensor;
    tensor.dtype = dtype->text;
    for (const Json& number : shape->items) {
      if (!number.is_count()) fail("the shape of tensor " + name + " must be whole numbers");
      tensor.shape.push_back(static_cast<int64_t>(number.number));
    }
    for (const Json& number : offsets->items) {
      if (!number.is_count()) fail("data_offsets of tensor " + name + " must be whole numbers");
    }
    tensor.begin = static_cast<uint64_t>(offsets->items[0].number);
    tensor.end = static_cast<uint64_t>(offsets->items[1].number);
    const uint64_t there = file_.data() + file_.size() - data_;
    if (tensor.begin > tensor.end || tensor.end > there) {
      fail("tensor " + name + " should lie in bytes " + std::to_string(tensor.begin) + " to " +
           std::to_string(tensor.end) + " behind the header, where there are " +
           std::to_string(there) + ": is the file cut short?");
    }
    tensor.data = data_ + tensor.begin;
    const double size = dtype_of(tensor) < 0 ? 0 : tensor.dtype == "F32" ? 4 : 2;
    double bytes = size;  // of whole numbers below 2^53 each: too large ones differ all the same
    for (int64_t length : tensor.shape) bytes *= static_cast<double>(length);
    if (size > 0 && bytes != static_cast<double>(tensor.end - tensor.begin)) {
      fail("tensor " + name + " is " + text(tensor.shape) + " of " + tensor.dtype + ", but has " +
           std::to_string(tensor.end - tensor.begin) + " bytes");
    }
    return tensor;
  }

  // Tensors neither overlap nor leave bytes between or behind them.
  void check_layout() const {
    std::vector<std::pair<const Tensor*, const std::string*>> order;
    for (const auto& [name, tensor] : tensors_) order.emplace_back(&tensor, &name);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return std::make_pair(a.first->begin, a.first->end) <
             std::make_pair(b.first->begin, b.first->end);
    });
    uint64_t at = 0;
    for (const auto& [tensor, name] : order) {
      if (tensor->begin != at) {
        fail("tensor " + *name + " begins at byte " + std::to_string(tensor->begin) +
             " behind the header; the one before ends at " + std::to_string(at));
      }
      at = tensor->end;
    }
    const uint64_t there = file_.data() + file_.size() - data_;
    if (at != there) {
      fail("its tensors have " + std::to_string(at) + " bytes, and the file has " +
           std::to_string(there) + " behind the header");
    }
  }

  const std::string path_;
  const MappedFile file_;
  const char* data_ = nullptr;  // behind the header
  std::map<std::string, Tensor> tensors_;
};
