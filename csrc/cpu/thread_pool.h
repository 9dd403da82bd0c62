// Runs the same task over a range of items on a small persistent set of threads.
#pragma once

#include <stdint.h>

namespace fastdecode {

// How many this machine has; found out once, which takes longer than some kernels.
int processors();

// Calls run(context, item) once for each item in [0, items), on at most `threads` threads of which
// the caller is one, and returns when all have finished. Where the process has threads of an
// OpenMP runtime the others are those; ask for as many at every call, or for one, since a smaller
// team than the last ends threads. Safe from any thread: while another caller has the pool, and in
// a forked child, which has no workers, the caller does all items itself. `run` must not throw, nor
// call this.
void parallel_for(int64_t items, int threads, void (*run)(void* context, int64_t item),
                  void* context);

}  // namespace fastdecode
