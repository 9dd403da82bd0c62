#include <cstdlib>

#include "cpu/sample.h"

namespace fastdecode {
namespace {

struct ThreadScratch {
  SampleScratch arrays = {0, nullptr, nullptr, nullptr, nullptr};
  void* memory = nullptr;

  ~ThreadScratch() { std::free(memory); }
};

}  // namespace

const SampleScratch* thread_scratch(int64_t capacity) {
  static thread_local ThreadScratch scratch;
  if (scratch.arrays.capacity >= capacity) return &scratch.arrays;
  // Whole cache lines per array, so that each begins on a line; one more keeps the arrays from
  // sharing their low address bits, which stores and loads are compared by.
  const int64_t rounded = (capacity + 15) / 16 * 16 + 16;
  const size_t bytes = static_cast<size_t>(rounded) * sizeof(float);
  void* memory = std::aligned_alloc(64, 4 * bytes);
  if (memory == nullptr) return nullptr;
  std::free(scratch.memory);
  char* base = static_cast<char*>(memory);
  scratch.memory = memory;
  scratch.arrays = {
      rounded, reinterpret_cast<int32_t*>(base), reinterpret_cast<float*>(base + bytes),
      reinterpret_cast<float*>(base + 2 * bytes), reinterpret_cast<int32_t*>(base + 3 * bytes)};
  return &scratch.arrays;
}

}  // namespace fastdecode
