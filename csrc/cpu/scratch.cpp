#include <cstdlib>

#include "cpu/sample.h"

namespace fastdecode {
namespace {

struct ThreadScratch {
  SampleScratch arrays = {};
  void* memory = nullptr;

  ~ThreadScratch() { std::free(memory); }
};

}  // namespace

const SampleScratch* thread_scratch(int64_t capacity) {
  static thread_local ThreadScratch scratch;
  if (scratch.memory != nullptr && scratch.arrays.capacity >= capacity) return &scratch.arrays;
  // Whole tiles, one to spare, and one more cache line, which keeps the arrays from sharing their
  // low address bits, by which stores and loads are compared.
  const int64_t tiles = (capacity + kSampleTile - 1) / kSampleTile + 1;
  const int64_t size = tiles * kSampleTile + 16;
  const int64_t tops = (tiles + 15) / 16 * 16;
  const size_t bytes = static_cast<size_t>(6 * size + tops) * sizeof(float);
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) return nullptr;
  std::free(scratch.memory);
  scratch.memory = memory;
  SampleScratch& s = scratch.arrays;
  s.capacity = capacity;
  s.gathered = static_cast<float*>(memory);
  s.z = s.gathered + size;
  s.p = s.z + size;
  s.at = reinterpret_cast<int32_t*>(s.p + size);
  s.places = s.at + size;
  s.expert = s.gathered + 5 * size;
  s.tops = s.expert + size;
  return &s;
}

}  // namespace fastdecode
