// Part of fastdecode.hpp: errors, spans, and the checks of their lengths.
#ifndef FASTDECODE_CPP_BASE_HPP
#define FASTDECODE_CPP_BASE_HPP

#include <fastdecode/fastdecode.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace fastdecode {

class Error : public std::runtime_error {
 public:
  Error(fastdecode_result result, const std::string& message)
      : std::runtime_error(message), result_(result) {}
  fastdecode_result result() const noexcept { return result_; }

 private:
  fastdecode_result result_;
};

// Throws the last error of this thread if the result is one.
inline void check(fastdecode_result result) {
  if (result != FASTDECODE_OK) throw Error(result, fastdecode_last_error());
}

// A pointer and a number of elements: of a vector, array, C array, or anything with data() and
// size().
template <typename T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(std::nullptr_t) noexcept {}
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <typename Container,
            typename = std::enable_if_t<std::is_convertible_v<
                std::remove_pointer_t<decltype(std::declval<Container&>().data())> (*)[], T (*)[]>>>
  constexpr Span(Container&& container) noexcept
      : data_(container.data()), size_(container.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

inline std::int64_t length(std::size_t size) {
  return static_cast<std::int64_t>(size);
}

// Throws if a span has fewer elements than a * b * c. Sizes that are negative or too large to be
// multiplied are left to the library, which refuses them.
inline void check_length(const char* name, std::size_t size, std::int64_t a, std::int64_t b = 1,
                         std::int64_t c = 1, const char* what = "elements") {
  std::uint64_t needed = 1;
  for (const std::int64_t factor : {a, b, c}) {
    if (factor <= 0) return;
    if (needed > UINT64_MAX / static_cast<std::uint64_t>(factor)) return;
    needed *= static_cast<std::uint64_t>(factor);
  }
  if (size >= needed) return;
  throw Error(FASTDECODE_INVALID_ARGUMENT, std::string(name) + ": has " + std::to_string(size) +
                                               " " + what + "; must have at least " +
                                               std::to_string(needed));
}

// Words of a set of bits, one for each token.
constexpr std::int64_t words(std::int64_t vocab) {
  return vocab / 32 + (vocab % 32 > 0 ? 1 : 0);
}

// A span that may be empty: it is then left out.
template <typename T>
T* optional(const char* name, Span<T> span, std::int64_t a, std::int64_t b = 1) {
  if (span.empty()) return nullptr;
  check_length(name, span.size(), a, b);
  return span.data();
}

}  // namespace detail

}  // namespace fastdecode

#endif  // FASTDECODE_CPP_BASE_HPP
