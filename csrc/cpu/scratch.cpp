#include "cpu/memory.h"
#include "cpu/sample.h"

namespace fastdecode {

const SampleScratch* thread_scratch(int64_t capacity) {
  static thread_local Memory memory;
  static thread_local SampleScratch s = {};
  if (s.gathered != nullptr && s.capacity >= capacity) return &s;
  // Whole tiles, and one to spare. The additional cache line gives the arrays different low address
  // bits: a processor compares only those to tell whether a load depends on a store.
  const int64_t tiles = (capacity + kSampleTile - 1) / kSampleTile + 1;
  const int64_t size = tiles * kSampleTile + 16;
  void* bytes = memory.reserve((6 * size + rounded_up(tiles)) * int64_t{sizeof(float)});
  if (bytes == nullptr) return nullptr;
  s.capacity = capacity;
  s.gathered = static_cast<float*>(bytes);
  s.z = s.gathered + size;
  s.p = s.z + size;
  s.at = reinterpret_cast<int32_t*>(s.p + size);
  s.places = s.at + size;
  s.expert = s.gathered + 5 * size;
  s.tops = s.expert + size;
  return &s;
}

}  // namespace fastdecode
