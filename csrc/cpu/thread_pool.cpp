#include "cpu/thread_pool.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace fastdecode {
namespace {

// An idle worker looks for work this many times, about 50 microseconds, before it sleeps: the parts
// of a decode step follow each other faster than a sleeping thread wakes.
constexpr int kLooks = 1500;

// A call starts no more threads than this, or than there are processors, however many it may use.
constexpr int kMostThreads = 64;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// GOMP_parallel of the process's OpenMP runtime, or null: torch loads one. OpenMP's threads spin
// while they wait for work. Threads of our own would have to share the processors with them, and
// would be late.
using OpenMp = void (*)(void (*run)(void*), void* context, unsigned threads, unsigned flags);

OpenMp openmp() {
  static const OpenMp found = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Threads of this process; 0 if they cannot be counted.
int threads_there() {
  DIR* folder = opendir("/proc/self/task");
  if (folder == nullptr) return 0;
  int count = -2;  // . and ..
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

// OpenMP ends the process if it cannot start as many threads as it is asked for.
unsigned at_most_useful(int threads) {
  return static_cast<unsigned>(std::min(threads, 4 * processors()));
}

// True in a forked child, whose only thread is a copy of the one that forked.
std::atomic<bool> forked{false};

__attribute__((constructor)) void notice_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
}

// The items of a call, one range for each thread. A thread does its own range in order, so that it
// reads memory as one stream, and then takes items that are left in other threads' ranges.
class Shares {
 public:
  void set(int64_t items, int threads) {
    ranges_ = static_cast<int>(std::min<int64_t>({items, threads, kMost}));
    for (int i = 0; i < ranges_; ++i) {
      range_[i].next.store(items * i / ranges_, std::memory_order_relaxed);
      range_[i].end = items * (i + 1) / ranges_;
    }
    threads_.store(1, std::memory_order_relaxed);
  }

  // A number for a thread that joins. The caller's number is 0.
  int number() { return threads_.fetch_add(1, std::memory_order_relaxed); }

  // Does items until none is left, as the thread of this number. Returns how many it did.
  int64_t work(int number, void (*task)(void*, int64_t), void* context) {
    int64_t done = 0;
    for (int i = 0; i < ranges_; ++i) {
      Range& range = range_[(number + i) % ranges_];
      for (;;) {
        const int64_t left = range.end - range.next.load(std::memory_order_relaxed);
        if (left <= 0) break;
        const int64_t few = std::max<int64_t>(left / kPart, 1);
        const int64_t first = range.next.fetch_add(few, std::memory_order_relaxed);
        const int64_t end = std::min(first + few, range.end);
        for (int64_t item = first; item < end; ++item, ++done) task(context, item);
      }
    }
    return done;
  }

 private:
  static constexpr int kMost = 64;
  // A thread takes one kPart-th of a range's remaining items at a time. Taking items one by one
  // would be slow: at each atomic operation, reads of memory wait for earlier ones.
  static constexpr int64_t kPart = 4;
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  Range range_[kMost];
  int ranges_ = 0;
  std::atomic<int> threads_{0};
};

class Pool {
 public:
  // False, with nothing done, if another caller uses the pool, this is a forked child, or the team
  // is avoided (see run_on_team).
  bool run(int64_t items, int threads, void (*task)(void*, int64_t), void* context) {
    if (forked.load() || !busy_.try_lock()) return false;
    const bool team = has_team();
    const bool ran = !team || Clock::now() >= avoid_until_;
    if (ran) {
      task_ = task;
      context_ = context;
      shares_.set(items, threads);
      if (team) {
        run_on_team(threads);
      } else {
        run_on_own(static_cast<int>(std::min<int64_t>(threads, items)) - 1);
      }
    }
    busy_.unlock();
    return ran;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kSeat = int64_t{1} << 32;
  static constexpr std::chrono::microseconds kLate{500};
  static constexpr std::chrono::milliseconds kAlone{50}, kRecent{20};

  // A call of an OpenMP team begins and ends when all of its threads do. If another program
  // occupies the processor of one of them, calls take milliseconds longer again and again. Once two
  // calls were late like that shortly after each other, callers work alone for a while. A single
  // one is late where a thread had gone to sleep.
  void run_on_team(int threads) {
    caller_ = pthread_self();
    const Clock::time_point asked = Clock::now();
    openmp()([](void* pool) { static_cast<Pool*>(pool)->work_in_team(); }, this,
             at_most_useful(threads), 0);
    const Clock::time_point now = Clock::now();
    const Clock::duration item = (left_ - joined_) / std::max<int64_t>(done_, 1);
    if ((joined_ - asked) + (now - left_) <= kLate + 2 * item) return;
    if (now - late_ < kRecent) avoid_until_ = now + kAlone;
    late_ = now;
  }

  void work_in_team() {
    if (pthread_equal(pthread_self(), caller_) == 0) {
      help();
      return;
    }
    joined_ = Clock::now();
    done_ = shares_.work(0, task_, context_);
    left_ = Clock::now();
  }

  // Whether the process has OpenMP's threads. A forked child has not, but its OpenMP runtime would
  // wait for those of the parent.
  bool has_team() {
    if (!team_ && openmp() != nullptr) team_ = threads_there() > 1 + workers_;
    return team_;
  }

  void run_on_own(int workers) {
    grow(workers);
    gate_.store(workers * kSeat);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    shares_.work(0, task_, context_);
    // No worker can join from here on; wait for those that did.
    gate_.fetch_and(kSeat - 1);
    for (int64_t looks = 0; gate_.load() != 0; ++looks) {
      if (looks < kLooks) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void grow(int workers) {
    try {
      for (; workers_ < workers; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::exception&) {
      // The system allows no more threads: those that exist, and the caller, do the work.
    }
  }

  bool join() {
    int64_t gate = gate_.load();
    while (gate >= kSeat) {
      if (gate_.compare_exchange_weak(gate, gate - kSeat + 1)) return true;
    }
    return false;
  }

  void serve() {
    for (;;) {
      for (int looks = 0; looks < kLooks; ++looks) {
        if (join()) {
          help();
          gate_.fetch_sub(1);
          looks = 0;
        }
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, [this] { return gate_.load() >= kSeat; });
      --sleepers_;
    }
  }

  void help() { shares_.work(shares_.number(), task_, context_); }

  std::mutex busy_;  // held by the caller whose items are being worked on
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int64_t> gate_{0};  // workers in the current call, plus kSeat for each that may join
  std::atomic<int> sleepers_{0};
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  Shares shares_;
  int workers_ = 0;     // threads started
  bool team_ = false;   // OpenMP's are used
  pthread_t caller_{};  // and what it saw of the last call of the team
  int64_t done_ = 0;    // items
  Clock::time_point joined_{}, left_{}, late_{}, avoid_until_{};
};

}  // namespace

int processors() {
  static const int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return count;
}

int thread_limit(int32_t threads) {
  return threads > 0 ? std::min(threads, std::max(kMostThreads, processors())) : processors();
}

void parallel_for(int64_t items, int threads, void (*run)(void*, int64_t), void* context) {
  if (threads > 1 && items > 1) {
    // Never destroyed: its workers are detached and live until the process ends.
    static Pool* const pool = new Pool;
    if (pool->run(items, threads, run, context)) return;
  }
  for (int64_t item = 0; item < items; ++item) run(context, item);
}

}  // namespace fastdecode
