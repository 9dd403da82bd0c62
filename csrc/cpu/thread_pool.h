// A few threads that are kept from call to call, and share the items of a task.
#pragma once

#include <stdint.h>

namespace fastdecode {

// How many processors this machine has. Asked once, since asking takes longer than some kernels.
int processors();

// The most threads that a call may use, by its argument `threads`: that many, or with 0 one per
// processor.
int thread_limit(int32_t threads);

// Calls run(context, item) once for each item in [0, items), on the caller's thread and at most
// `threads` - 1 others, and returns when all items are done. `run` must not throw, and must not
// call parallel_for.
//
// Where the process has an OpenMP runtime, its threads do the work. Then ask for the same number of
// threads at every call, or for one: OpenMP ends threads when a team is smaller than the last.
//
// Safe from any thread. The caller does all items itself while another caller uses the threads, and
// in a forked child, which has no other threads.
void parallel_for(int64_t items, int threads, void (*run)(void* context, int64_t item),
                  void* context);

// Calls call(context) on the caller's thread, with at most `threads` - 1 others at hand until it
// returns: every parallel_for in it finds them awake, and need not start an OpenMP team of its own.
// With one thread, `call` is just called. `call` must not throw, and should take milliseconds at
// most outside parallel_for, since the other threads wait without sleeping. Other callers do their
// items alone meanwhile.
void keep_threads(int threads, void (*call)(void* context), void* context);

}  // namespace fastdecode
