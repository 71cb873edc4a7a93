// The thread pool.
//
// One word of state holds whether a loop is open and how many workers are inside it. Workers join
// an open loop by compare-and-swap, so the caller waits only for those that did join: a worker that
// the operating system has put aside costs nothing. Workers spin briefly, then park.
//
// Each thread has a range of the tasks to begin with, the same in every loop of as many: what it
// wrote in one loop it finds in its own caches in the next. Who is done helps the others.
#include "core/parallel.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/machine.h"
#include "core/settings.h"

namespace llmcore {
namespace {

// About 30 microseconds: longer than the serial gaps of a training step, shorter than a time slice.
constexpr int kSpinsBeforePark = 1500;
constexpr int kSpinsBeforeYield = 20000;
constexpr int kMaxThreads = 4096;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class ThreadPool {
 public:
  explicit ThreadPool(int threads) : ranges_(threads) {
    workers_.reserve(threads);
    try {
      for (int worker = 1; worker < threads; ++worker)
        workers_.emplace_back([this, worker] { work(worker); });
    } catch (const std::system_error& error) {
      stop();
      throw ConfigError(str("the system refused to start ", threads, " threads (", error.what(),
                            "); use fewer: LLMCORE_NUM_THREADS or set_num_threads"));
    }
  }

  ~ThreadPool() { stop(); }

  int threads() const { return static_cast<int>(ranges_.size()); }

  void run(int64_t count, Task task, void* context) {
    task_ = task;
    context_ = context;
    for (int worker = 0; worker < threads(); ++worker) {
      ranges_[worker].next.store(worker * count / threads(), std::memory_order_relaxed);
      ranges_[worker].end = (worker + 1) * count / threads();
    }
    state_.store(kOpen);  // publishes the loop
    epoch_.fetch_add(1);
    if (parked_.load() > 0) wake();
    claim_tasks(0);
    state_.fetch_and(~kOpen);
    for (int spins = 0; state_.load(std::memory_order_acquire) != 0; ++spins) {
      relax();
      if (spins > kSpinsBeforeYield) std::this_thread::yield();
    }
  }

 private:
  static constexpr uint32_t kOpen = 1u << 31;  // the bits below it count the workers inside

  // Tasks of one thread, claimed from the first on.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void claim_tasks(int worker) {
    for (int turn = 0; turn < threads(); ++turn) {
      Range& range = ranges_[(worker + turn) % threads()];
      while (range.next.load(std::memory_order_relaxed) < range.end) {
        const int64_t i = range.next.fetch_add(1, std::memory_order_relaxed);
        if (i < range.end) task_(context_, i, worker);
      }
    }
  }

  bool join_open_loop() {
    uint32_t state = state_.load();
    while (state & kOpen)
      if (state_.compare_exchange_weak(state, state + 1)) return true;
    return false;
  }

  void work(int worker);

  void stop() {
    stop_.store(true);
    wake();
    for (std::thread& worker : workers_) worker.join();
  }

  void wake() {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

  Task task_ = nullptr;
  void* context_ = nullptr;
  std::vector<Range> ranges_;
  alignas(64) std::atomic<uint32_t> state_{0};
  std::atomic<uint32_t> epoch_{0};  // loops started so far
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

thread_local bool inside_loop = false;

void ThreadPool::work(int worker) {
  inside_loop = true;
  uint32_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    for (int spins = 0; spins < kSpinsBeforePark && epoch_.load() == seen; ++spins) relax();
    if (epoch_.load() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return stop_.load() || epoch_.load() != seen; });
      parked_.fetch_sub(1);
      continue;
    }
    seen = epoch_.load();
    if (!join_open_loop()) continue;
    claim_tasks(worker);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

int default_threads() {
  const std::string& wanted = settings().num_threads;
  if (wanted.empty()) return usable_cores();
  char* end = nullptr;
  const long count = std::strtol(wanted.c_str(), &end, 10);
  CHECK(*end == '\0' && count >= 1 && count <= kMaxThreads, ConfigError,
        "LLMCORE_NUM_THREADS must be a whole number from 1 to ", kMaxThreads, ", got '", wanted,
        "'");
  return static_cast<int>(count);
}

// The process's pool. The lock is held for the length of a loop; who cannot get it runs alone.
struct Shared {
  std::mutex lock;
  std::unique_ptr<ThreadPool> pool;
  std::atomic<int> wanted{0};  // 0: not decided yet. Read without the lock: a task may ask
};

Shared* shared_pool() {
  // Never destroyed: workers may outlive main()'s statics. A forked child starts from a fresh one.
  static Shared* instance = [] {
    pthread_atfork(nullptr, nullptr, [] {
      const int wanted = shared_pool()->wanted.load();
      (void)shared_pool()->pool.release();
      new (shared_pool()) Shared;
      shared_pool()->wanted.store(wanted);
      inside_loop = false;
    });
    return new Shared;
  }();
  return instance;
}

}  // namespace

int num_threads() {
  std::atomic<int>& wanted = shared_pool()->wanted;
  if (wanted.load() == 0) {
    int undecided = 0;
    wanted.compare_exchange_strong(undecided, default_threads());
  }
  return wanted.load();
}

void set_num_threads(int count) {
  CHECK(count >= 1 && count <= kMaxThreads, ConfigError,
        "set_num_threads: count must be from 1 to ", kMaxThreads, ", got ", count);
  Shared& shared = *shared_pool();
  std::lock_guard<std::mutex> guard(shared.lock);
  if (shared.pool && shared.pool->threads() != count) shared.pool.reset();
  shared.wanted.store(count);
}

void parallel_run(int64_t count, Task task, void* context) {
  if (count == 1) return task(context, 0, 0);
  if (count <= 0) return;
  Shared& shared = *shared_pool();
  std::unique_lock<std::mutex> guard(shared.lock, std::defer_lock);
  const bool nested = inside_loop;
  const bool alone = nested || num_threads() == 1 || !guard.try_lock();
  if (!alone && !shared.pool) shared.pool = std::make_unique<ThreadPool>(num_threads());
  inside_loop = true;
  if (alone)
    for (int64_t i = 0; i < count; ++i) task(context, i, 0);
  else
    shared.pool->run(count, task, context);
  inside_loop = nested;
}

}  // namespace llmcore
