// Working memory that a thread keeps from call to call.
#pragma once

#include <stdint.h>

namespace fastdecode {

// Freed when the thread ends.
class Memory {
 public:
  ~Memory();
  // At least so many bytes, aligned to a cache line; null if the system has none. What earlier
  // calls stored is kept only if no more bytes are asked for than before.
  void* reserve(int64_t bytes);

 private:
  void* bytes_ = nullptr;
  int64_t size_ = 0;
};

// At least n, and a multiple of the floats in a cache line: the array behind n floats begins at
// one.
inline int64_t rounded_up(int64_t n) {
  return (n + 15) / 16 * 16;
}

}  // namespace fastdecode
