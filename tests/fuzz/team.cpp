// The thread pool with an OpenMP team, which is a team of std::thread here so that the thread
// sanitizer sees it: several callers at once, how many teams are started, and which waits count as
// late, by a clock that stands still.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

struct StandingClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<StandingClock>;
  static constexpr bool is_steady = true;
  static std::atomic<int64_t> nanoseconds;
  static time_point now() { return time_point(duration(nanoseconds.load())); }
};
std::atomic<int64_t> StandingClock::nanoseconds{int64_t{1000000000000}};

std::atomic<int> teams{0};

}  // namespace

#define FASTDECODE_POOL_CLOCK ::StandingClock
#include "cpu/thread_pool.cpp"

extern "C"
    __attribute__((visibility("default"))) void GOMP_parallel(void (*run)(void*), void* context,
                                                              unsigned threads, unsigned) {
  ++teams;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(run, context);
  run(context);
  for (std::thread& other : others) other.join();
}

namespace {

using fastdecode::keep_threads;
using fastdecode::parallel_for;

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

struct Sums {
  std::vector<int64_t> of;
  int threads;
};

void add(void* sums, int64_t item) {
  static_cast<Sums*>(sums)->of[static_cast<size_t>(item)] += item + 1;
}

constexpr int kCalls = 20;

void add_often(void* of) {
  Sums& sums = *static_cast<Sums*>(of);
  for (int i = 0; i < kCalls; ++i) {
    parallel_for(static_cast<int64_t>(sums.of.size()), sums.threads, add, of);
  }
}

void call_from_several_threads() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller] {
      for (int round = 0; round < 40; ++round) {
        Sums sums = {std::vector<int64_t>(static_cast<size_t>(3 + (round * 7 + caller) % 200), 0),
                     2 + (round + caller) % 3};
        if ((caller + round) % 3 != 0) {
          keep_threads(sums.threads, add_often, &sums);
        } else {
          add_often(&sums);
        }
        for (size_t i = 0; i < sums.of.size(); ++i) {
          expect(sums.of[i] == kCalls * static_cast<int64_t>(i + 1), "an item was not done once");
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

int teams_of(int threads, void (*call)(void*), void* context) {
  const int before = teams;
  keep_threads(threads, call, context);
  return teams - before;
}

// Two items: the caller's ends first, and then the other one takes so many nanoseconds.
struct Pair {
  int64_t nanoseconds;
  std::atomic<bool> begun{false}, ended{false};
};

void one_of_two(void* of, int64_t item) {
  Pair& pair = *static_cast<Pair*>(of);
  if (item == 0) {
    // A caller that is alone waits in vain.
    for (int i = 0; i < 20000 && !pair.begun; ++i) usleep(100);
    pair.ended = true;
    return;
  }
  pair.begun = true;
  while (!pair.ended) std::this_thread::yield();
  usleep(3000);  // by then the caller waits
  StandingClock::nanoseconds += pair.nanoseconds;
}

constexpr int kPairs = 8;

void wait_often(void* nanoseconds) {
  for (int i = 0; i < kPairs; ++i) {
    Pair pair;
    pair.nanoseconds = *static_cast<int64_t*>(nanoseconds);
    parallel_for(2, 2, one_of_two, &pair);
  }
}

void which_waits_are_late() {
  Sums sums = {std::vector<int64_t>(8, 0), 2};
  int64_t short_wait = 300000, long_wait = 2000000;  // nanoseconds; more than 500,000 is late
  for (int i = 0; i < 3; ++i) {
    expect(teams_of(2, wait_often, &short_wait) == 1, "short waits were added up");
  }
  int waits = 0;
  for (; waits < 20; ++waits) {
    if (teams_of(2, add_often, &sums) == 0) break;
    Pair pair;
    pair.nanoseconds = long_wait;
    parallel_for(2, 2, one_of_two, &pair);
  }
  expect(waits >= 2, "one late team was enough");
  expect(waits < 20, "late teams were not avoided");
  StandingClock::nanoseconds += 51000000;
  expect(teams_of(2, add_often, &sums) == 1, "the team was avoided for more than 50 ms");
}

}  // namespace

int main() {
  std::atomic<bool> idle{true};
  std::thread other([&] {  // a process with one thread has no team
    while (idle) usleep(1000);
  });
  Sums sums = {std::vector<int64_t>(50, 0), 2};
  expect(teams_of(2, add_often, &sums) == 1, "a call that keeps its threads needs one team");
  expect(teams_of(1, [](void*) {}, nullptr) == 0, "one thread needs no team");
  const int before = teams;
  add_often(&sums);
  expect(teams - before == kCalls, "without keep_threads each call has a team");
  which_waits_are_late();
  call_from_several_threads();
  idle = false;
  other.join();
  std::printf("teams %d\n", teams.load());
}
