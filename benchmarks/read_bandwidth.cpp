// Reads memory in one of many ways and says how long it took: what `read_bandwidth.py` measures the
// floors with.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Line = uint64_t __attribute__((vector_size(64)));  // a cache line; registers of any width

constexpr size_t kHugePage = size_t{2} << 20;

// Reads `streams` equal parts of [p, p + bytes) side by side, two lines of each in turn. `hint`: -1
// prefetches nothing; 0 without leaving it in the caches (non-temporal), 2 into the second level, 3
// into the first, `ahead` bytes ahead.
template <int streams, int hint>
Line read(const char* p, size_t bytes, size_t ahead) {
  const size_t part = bytes / streams / 128 * 128;
  Line sums[8] = {};
  for (size_t i = 0; i < part; i += 128) {
#pragma GCC unroll 8
    for (int s = 0; s < streams; ++s) {
      const char* q = p + s * part + i;
      if constexpr (hint >= 0) {
        __builtin_prefetch(q + ahead, 0, hint);
        __builtin_prefetch(q + ahead + 64, 0, hint);
      }
      sums[2 * s & 7] += *reinterpret_cast<const Line*>(q);
      sums[(2 * s + 1) & 7] += *reinterpret_cast<const Line*>(q + 64);
    }
  }
  for (int i = 1; i < 8; ++i) sums[0] += sums[i];
  return sums[0];
}

using Read = Line (*)(const char*, size_t, size_t);

template <int streams>
Read with_hint(int hint) {
  switch (hint) {
    case -1:
      return read<streams, -1>;
    case 0:
      return read<streams, 0>;
    case 2:
      return read<streams, 2>;
    case 3:
      return read<streams, 3>;
    default:
      return nullptr;
  }
}

Read choose(int streams, int hint) {
  switch (streams) {
    case 1:
      return with_hint<1>(hint);
    case 2:
      return with_hint<2>(hint);
    case 4:
      return with_hint<4>(hint);
    case 8:
      return with_hint<8>(hint);
    default:
      return nullptr;
  }
}

}  // namespace

// `bytes` (a multiple of 2 MB) of memory that begins at a huge page, every page written once; null
// if there is none. It stays for as long as the process.
extern "C" void* memory_new(size_t bytes, int huge) {
  void* all =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const auto begin = (reinterpret_cast<uintptr_t>(all) + kHugePage - 1) & ~(kHugePage - 1);
  void* p = reinterpret_cast<void*>(begin);
  madvise(p, bytes,
          huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // where it is refused, the ways are alike
  memset(p, 1, bytes);
  return p;
}

// The seconds that `threads` threads need to read all of it, from the first's start to the last's
// end; negative for streams or a hint that there are not. `stretch` 0: each thread has one part of
// its own. Else they take stretches of so many bytes, whoever is free the next.
extern "C" double memory_read(const void* memory, size_t bytes, int threads, int streams, int hint,
                              size_t ahead, size_t stretch) {
  const Read read = choose(streams, hint);
  if (read == nullptr || threads < 1) return -1;
  const char* p = static_cast<const char*>(memory);
  const size_t size = stretch ? stretch : (bytes + threads - 1) / threads / 128 * 128;
  std::atomic<int> ready{0};
  std::atomic<size_t> next{0};
  static std::atomic<uint64_t> used;  // so that no read can be left out
  std::vector<Clock::time_point> begun(threads), ended(threads);
  auto work = [&](int number) {
    ++ready;
    while (ready.load() < threads) std::this_thread::yield();
    begun[number] = Clock::now();
    for (size_t at; (at = next.fetch_add(size)) < bytes;) {
      used += read(p + at, std::min(size, bytes - at), ahead)[0];
    }
    ended[number] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
  const auto took =
      *std::max_element(ended.begin(), ended.end()) - *std::min_element(begun.begin(), begun.end());
  return std::chrono::duration<double>(took).count();
}
