#include "cpu/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace fastdecode {
namespace {

class Pool {
 public:
  // False, with nothing done, if another caller has the pool or this is a forked child.
  bool run(int64_t items, int threads, void (*task)(void*, int64_t), void* context) {
    if (getpid() != owner_ || !busy_.try_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(threads - 1);
      task_ = task;
      context_ = context;
      items_ = items;
      next_.store(0, std::memory_order_relaxed);
      seats_ = threads - 1;
    }
    wake_.notify_all();
    work();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      seats_ = 0;  // Nobody joins from here on; wait for those who did.
      done_.wait(lock, [this] { return active_ == 0; });
    }
    busy_.unlock();
    return true;
  }

 private:
  void grow(int workers) {
    try {
      for (; workers_ < workers; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: those there are, and the caller, do the work.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++active_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  void work() {
    for (;;) {
      const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
      if (item >= items_) return;
      task_(context_, item);
    }
  }

  const pid_t owner_ = getpid();
  std::mutex busy_;  // held by the caller whose items are being worked on
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  std::atomic<int64_t> next_{0};
  int workers_ = 0;  // threads started
  int seats_ = 0;    // workers that may still join the current call
  int active_ = 0;   // workers in the current call
};

}  // namespace

void parallel_for(int64_t items, int threads, void (*run)(void*, int64_t), void* context) {
  const int wanted = static_cast<int>(std::min<int64_t>(threads, items));
  if (wanted > 1) {
    // Never destroyed: its workers are detached and live until the process ends.
    static Pool* const pool = new Pool;
    if (pool->run(items, wanted, run, context)) return;
  }
  for (int64_t item = 0; item < items; ++item) run(context, item);
}

}  // namespace fastdecode
