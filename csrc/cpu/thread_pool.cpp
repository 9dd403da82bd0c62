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

// A test has its own.
#if !defined(FASTDECODE_POOL_CLOCK)
#define FASTDECODE_POOL_CLOCK std::chrono::steady_clock
#endif

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
  // Never destroyed: its workers are detached and live until the process ends.
  static Pool& only() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // Shares out the items. False, with nothing done, if another caller uses the pool, this is a
  // forked child, or the team is avoided (see run_on_team).
  bool run(int64_t items, int threads, void (*task)(void*, int64_t), void* context) {
    if (inside) {
      share(items, threads, task, context);
      return true;
    }
    Items all = {this, items, threads, task, context};
    const auto share_all = [](void* of) {
      const Items& a = *static_cast<Items*>(of);
      a.pool->share(a.items, a.threads, a.task, a.context);
    };
    return keep(threads, share_all, &all, static_cast<int>(std::min<int64_t>(threads, items)) - 1);
  }

  // Calls `call` with the OpenMP team at hand for every `run` in it; where there is none, with so
  // many workers of our own. False, with nothing done, as above or if there would be neither.
  bool keep(int threads, void (*call)(void*), void* context, int workers = 0) {
    if (forked.load() || !busy_.try_lock()) return false;
    bool ran = workers > 0;
    if (has_team()) {
      ran = run_on_team(threads, call, context);
    } else if (ran) {
      grow(workers);
      call(context);
    }
    busy_.unlock();
    return ran;
  }

 private:
  struct Items {
    Pool* pool;
    int64_t items;
    int threads;
    void (*task)(void*, int64_t);
    void* context;
  };

  using Clock = FASTDECODE_POOL_CLOCK;
  static constexpr int64_t kSeat = int64_t{1} << 32;
  static constexpr std::chrono::microseconds kLate{500};
  static constexpr std::chrono::milliseconds kAlone{50}, kRecent{20};

  // Calls `call` on this thread, as one of an OpenMP team whose others help with every `share`. The
  // team begins and ends when all of its threads do, so starting one for each `share` would take
  // microseconds: a decode step has a hundred of them.
  //
  // If another program occupies the processor of one of the threads, the caller waits for it
  // milliseconds again and again. Once it had to wait so for two teams shortly after each other,
  // callers work alone for a while: false, with nothing done. A single team is late where a thread
  // had gone to sleep.
  bool run_on_team(int threads, void (*call)(void*), void* context) {
    const Clock::time_point asked = Clock::now();
    if (asked < avoid_until_) return false;
    waited_ = Clock::duration::zero();
    call_ = call;
    call_context_ = context;
    caller_ = pthread_self();
    open_.store(true, std::memory_order_relaxed);
    openmp()([](void* pool) { static_cast<Pool*>(pool)->work_in_team(); }, this,
             at_most_useful(threads), 0);
    const Clock::time_point now = Clock::now();
    if ((joined_ - asked) + waited_ + (now - left_) > kLate) {
      if (asked - late_ < kRecent) avoid_until_ = now + kAlone;
      late_ = now;
    }
    return true;
  }

  void work_in_team() {
    if (pthread_equal(pthread_self(), caller_) == 0) {
      for (int looks = 0; open_.load(std::memory_order_acquire); ++looks) {
        if (help()) looks = 0;
        wait(looks);
      }
      return;
    }
    joined_ = Clock::now();
    inside = true;
    call_(call_context_);
    inside = false;
    open_.store(false, std::memory_order_release);
    left_ = Clock::now();
  }

  // Whether the process has OpenMP's threads. A forked child has not, but its OpenMP runtime would
  // wait for those of the parent.
  bool has_team() {
    if (!team_ && openmp() != nullptr) team_ = threads_there() > 1 + workers_;
    return team_;
  }

  // Does the items together with the threads that come to help.
  void share(int64_t items, int threads, void (*task)(void*, int64_t), void* context) {
    task_ = task;
    context_ = context;
    shares_.set(items, threads);
    gate_.store((std::min<int64_t>(threads, items) - 1) * kSeat);
    if (!inside && sleepers_.load() > 0) {  // a team's threads are awake
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    const Clock::time_point begun = Clock::now();
    const int64_t done = shares_.work(0, task_, context_);
    // No thread can join from here on; wait for those that did.
    gate_.fetch_and(kSeat - 1);
    if (gate_.load() == 0) return;
    const Clock::time_point ended = Clock::now();
    for (int looks = 0; gate_.load() != 0; ++looks) wait(looks);
    const Clock::duration own = (ended - begun) / std::max<int64_t>(done, 1);  // for one item
    const Clock::duration more = Clock::now() - ended - 2 * own;
    if (more > kLate) waited_ += more;  // less is because items differ
  }

  // Helps the caller, if it shares items and has a seat left.
  bool help() {
    int64_t gate = gate_.load();
    while (gate >= kSeat) {
      if (!gate_.compare_exchange_weak(gate, gate - kSeat + 1)) continue;
      shares_.work(shares_.number(), task_, context_);
      gate_.fetch_sub(1);
      return true;
    }
    return false;
  }

  static void wait(int looks) {
    if (looks < kLooks) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }

  void grow(int workers) {
    try {
      for (; workers_ < workers; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::exception&) {
      // The system allows no more threads: those that exist, and the caller, do the work.
    }
  }

  void serve() {
    for (;;) {
      for (int looks = 0; looks < kLooks; ++looks) {
        if (help()) looks = 0;
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, [this] { return gate_.load() >= kSeat; });
      --sleepers_;
    }
  }

  static thread_local bool inside;  // a call that keeps the team

  std::mutex busy_;  // held by the caller that uses the threads
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int64_t> gate_{0};  // threads that help now, plus kSeat for each that may yet
  std::atomic<int> sleepers_{0};
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  Shares shares_;
  int workers_ = 0;                // threads started
  bool team_ = false;              // OpenMP's are used
  std::atomic<bool> open_{false};  // the team is kept
  void (*call_)(void*) = nullptr;
  void* call_context_ = nullptr;
  pthread_t caller_{};        // and what it saw of the last team
  Clock::duration waited_{};  // late, for items of others
  Clock::time_point joined_{}, left_{}, late_{}, avoid_until_{};
};

thread_local bool Pool::inside = false;

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
    if (Pool::only().run(items, threads, run, context)) return;
  }
  for (int64_t item = 0; item < items; ++item) run(context, item);
}

void keep_threads(int threads, void (*call)(void*), void* context) {
  if (threads > 1 && Pool::only().keep(threads, call, context)) return;
  call(context);
}

}  // namespace fastdecode
