// What the fuzz targets share: bytes as choices, arrays of exact size, failed checks, and the
// instruction set that the library runs with.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "cpu/isa.h"
#include "fastdecode/fastdecode.h"

// Prints what did not hold and ends the program, as a sanitizer does.
#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
      fprintf(stderr, "last error: %s\n", fastdecode_last_error());                 \
      abort();                                                                      \
    }                                                                               \
  } while (0)

namespace fuzz {

// The library's own choice of an instruction set is replaced by this one (isa_of_choice.cpp).
void use_isa(fastdecode::Isa isa);
fastdecode::Isa best_isa();
template <typename Function>
void for_each_isa(Function function) {
  const int best = static_cast<int>(best_isa());
  for (int isa = 0; isa <= best; ++isa) {
    use_isa(static_cast<fastdecode::Isa>(isa));
    function();
  }
  use_isa(best_isa());
}

// What came of an input, hashed: inputs with a new outcome are kept and mutated further, where no
// coverage is to be had.
extern uint64_t outcome;
inline void note(uint64_t value) {
  outcome = (outcome ^ value) * 0x9E3779B97F4A7C15u;
  outcome ^= outcome >> 29;
}

// Reads choices from bytes; zeros behind their end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint64_t bits(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(next()) << (8 * i);
    return value;
  }
  int64_t in(int64_t lo, int64_t hi) {
    const uint64_t span = static_cast<uint64_t>(hi) - static_cast<uint64_t>(lo) + 1;
    const uint64_t drawn = bits(span <= 256 ? 1 : span <= 65536 ? 2 : 8);
    return static_cast<int64_t>(static_cast<uint64_t>(lo) + (span == 0 ? drawn : drawn % span));
  }
  bool one_in(int n) { return in(0, n - 1) == n - 1; }
  template <typename T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[in(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  int64_t any_int64() {
    return one_in(2) ? static_cast<int64_t>(bits(8))
                     : of<int64_t>({0, 1, -1, INT64_MAX, INT64_MIN, INT64_MAX - 1, 1ll << 32});
  }
  // Any float at all.
  float any_float() {
    switch (in(0, 3)) {
      case 0:
        return of<float>({0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, 3.4e38f, -3.4e38f,
                          1e-45f, -1e-45f, 1e-38f, 65504.0f, -86.0f, -29.0f, -28.42f, 0.5f});
      case 1:
        return float_of(static_cast<uint32_t>(bits(4)));
      default:
        return static_cast<float>(in(-2000, 2000)) / 64.0f;
    }
  }
  float finite_float() {
    const float x = any_float();
    return std::isfinite(x) ? x : 0.25f;
  }
  // Of [0, 1], its ends often.
  float unit_float() {
    return one_in(2) ? static_cast<float>(in(0, 1 << 15)) / 32768.0f
                     : of<float>({0.0f, 1.0f, 0.9999999f, 1e-45f, 1e-7f, 0.9f, 0x1.fffffep-1f});
  }

  static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }

 private:
  uint8_t next() { return at_ < size_ ? data_[at_++] : 0; }

  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// A sequence from a number (splitmix64): long arrays are filled from few bytes.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

// n elements on the heap and not one more, so that reading past them is seen.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t n = 0)
      : size_(n), data_(static_cast<T*>(malloc(static_cast<size_t>(n) * sizeof(T)))) {}
  Exact(const Exact& other) : Exact(other.size_) {
    if (size_ > 0) memcpy(data_, other.data_, bytes());
  }
  Exact& operator=(Exact other) {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Exact() { free(data_); }

  T* get() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }
  Exact& fill(T value) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = value;
    return *this;
  }
  bool same_bits(const Exact& other) const {
    return size_ == other.size_ && (size_ == 0 || memcmp(data_, other.data_, bytes()) == 0);
  }

 private:
  int64_t size_;
  T* data_;
};

// The message of a refused call names something.
void check_refusal(fastdecode_result result);

// Each builds arguments from the bytes, calls the library, and checks what must hold.
void fuzz_sample(Bytes& bytes);
void fuzz_advance(Bytes& bytes);
void fuzz_linear(Bytes& bytes);
void fuzz_decode_step(Bytes& bytes);
void fuzz_operations(Bytes& bytes);

}  // namespace fuzz
