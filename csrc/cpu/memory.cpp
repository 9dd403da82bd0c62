#include "cpu/memory.h"

#include <algorithm>
#include <cstdlib>

namespace fastdecode {

Memory::~Memory() {
  std::free(bytes_);
}

void* Memory::reserve(int64_t bytes) {
  if (bytes_ != nullptr && bytes <= size_) return bytes_;
  bytes = std::max<int64_t>((bytes + 63) / 64 * 64, 64);
  void* more = std::aligned_alloc(64, static_cast<size_t>(bytes));
  if (more == nullptr) return nullptr;
  std::free(bytes_);
  bytes_ = more;
  size_ = bytes;
  return more;
}

}  // namespace fastdecode
