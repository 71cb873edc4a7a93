// The thread pool: one per process, fixed size, no OpenMP.
//
// A parallel loop is `count` independent tasks. Each thread begins with its own share of them, the
// first thread with the first, then takes over what others have not begun. Each task is computed
// whole by one thread, so results never depend on how many threads there are.
// A loop started inside another, or while another Python thread holds the pool, runs on the calling
// thread alone, with the same result; a single task is no loop, and may start one.
// Tasks do not throw: checks come before the loop.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"

namespace llmcore {

// `worker` is below num_threads() and no two running tasks of a loop share it: it indexes scratch.
using Task = void (*)(void* context, int64_t index, int worker);

// Runs task(context, i, worker) for every i in [0, count) and returns when all are done. Throws
// ConfigError where the system refuses to start the pool's threads.
void parallel_run(int64_t count, Task task, void* context);

// Threads that take part, the caller included. Throws ConfigError where LLMCORE_NUM_THREADS is
// wrong.
int num_threads();

// Restarts the pool with `count` threads; throws ConfigError below 1.
void set_num_threads(int count);

// body(index, worker) for every index in [0, count).
template <class Body>
LLMCORE_INLINE void parallel_for(int64_t count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_run(
      count,
      [](void* context, int64_t index, int worker) {
        (*static_cast<Plain*>(context))(index, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The same, on the calling thread alone where the work is not worth waking others.
template <class Body>
LLMCORE_INLINE void parallel_for_if(bool parallel, int64_t count, Body&& body) {
  if (parallel) return parallel_for(count, body);
  for (int64_t i = 0; i < count; ++i) body(i, 0);
}

// body(begin, end, worker) over [0, count) in chunks of `grain`.
template <class Body>
LLMCORE_INLINE void parallel_chunks(int64_t count, int64_t grain, Body&& body) {
  parallel_for((count + grain - 1) / grain, [&](int64_t chunk, int worker) {
    const int64_t begin = chunk * grain;
    const int64_t end = begin + grain < count ? begin + grain : count;
    body(begin, end, worker);
  });
}

}  // namespace llmcore
