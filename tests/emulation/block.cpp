// Runs a kernel: blocks one after the other, the threads of a block as fibers that take turns.
//
// A thread runs until it ends or waits. When nobody can run and not all have ended, the kernel
// waits for something that never happens, and that is a fault.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "emulation.h"
#include "fiber.h"
#include "settings.h"
#include "shared_memory.h"

namespace emulation {

struct Meeting {
  Together what;
  unsigned mask, arrived;
  alignas(16) unsigned char values[32][kExchangedBytes];
};

namespace {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  enum State { kReady, kAtBarrier, kAtMeeting, kEnded };

  State state;
  uint3 index;
  int number;
  bool waited;  // for the kernel ahead
  const Meeting* meeting;
  Context context;
  std::vector<std::vector<Copy>> copies;  // groups, the last one still open
};

// One block runs at a time, whoever asks: the runtime's lock sees to that.
const Launch* launched;
std::vector<Thread> threads;
std::vector<int> order;
std::vector<std::vector<Meeting*>> meetings;  // those to which lanes are to come, for each warp
std::vector<std::unique_ptr<Meeting>> all_meetings;
std::vector<Meeting*> free_meetings;
Context scheduler;
Thread* current;
int ended, at_barrier, predicates, barrier_result;
bool passed_barrier;
std::string complaint;
void* dynamic_memory;

void stop(bool end = false) {
  switch_context(current->context, scheduler, end);
}

void thread_main() {
  enter(scheduler);
  launched->thread();
  if (launched->starts_early && !current->waited)
    fault("has ended without waiting for the kernel ahead");
  current->state = Thread::kEnded;
  ++ended;
  stop(true);
}

void resume(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  if (thread.context.stack.bottom == nullptr) prepare(thread.context, take_stack(), thread_main);
  switch_context(scheduler, thread.context);
  if (thread.state != Thread::kEnded) return;
  give_stack(thread.context.stack);
  thread.context.stack = {};
}

std::string text(dim3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

std::string hexadecimal(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}

const char* name(Together what) {
  switch (what) {
    case Together::kSync:
      return "__syncwarp";
    case Together::kShuffle:
      return "a shuffle";
    case Together::kVote:
      return "a vote";
    case Together::kMultiply:
      return "mma";
    case Together::kLoadMatrix:
      return "ldmatrix";
  }
  return "";
}

// Why nobody can run.
std::string who_waits() {
  std::string told = std::to_string(at_barrier) + " of " + std::to_string(threads.size()) +
                     " threads wait at __syncthreads, " + std::to_string(ended) + " have ended";
  for (size_t warp = 0; warp < meetings.size(); ++warp)
    for (const Meeting* meeting : meetings[warp])
      told += ", and lanes " + hexadecimal(meeting->arrived) + " of warp " + std::to_string(warp) +
              " wait at " + name(meeting->what) + " for lanes " +
              hexadecimal(meeting->mask & ~meeting->arrived);
  return told;
}

// Threads that will not go on leave their stacks and their meetings.
void abandon() {
  for (Thread& thread : threads) {
    if (thread.context.stack.bottom != nullptr) give_stack(thread.context.stack);
    thread.context.stack = {};
  }
  free_meetings.clear();
  for (const auto& meeting : all_meetings) free_meetings.push_back(meeting.get());
}

void shuffle_threads() {
  std::iota(order.begin(), order.end(), 0);
  arrange(order);
}

void run_threads() {
  shuffle_threads();
  for (bool moved = true; ended < static_cast<int>(threads.size());) {
    if (!moved) complaint = who_waits();
    if (!complaint.empty()) return;
    moved = false;
    for (const int i : order) {
      if (threads[i].state != Thread::kReady) continue;
      resume(threads[i]);
      moved = true;
      if (passed_barrier || !complaint.empty()) break;
    }
    if (passed_barrier) shuffle_threads();
    passed_barrier = false;
  }
}

void run_block(dim3 at) {
  blockIdx = at;
  for (Thread& thread : threads) {
    thread.state = Thread::kReady;
    thread.waited = false;
    thread.copies.clear();
  }
  for (auto& warp : meetings) warp.clear();
  ended = at_barrier = predicates = 0;
  complaint.clear();
  dynamic_memory = take_dynamic_shared(launched->shared_bytes);
  run_threads();
  give_dynamic_shared(dynamic_memory);
  if (!complaint.empty()) abandon();
}

// Runs the blocks, up to the first that fails.
void run_blocks() {
  std::vector<int> blocks(static_cast<size_t>(gridDim.x) * gridDim.y * gridDim.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  arrange(blocks);
  StaticShared shared;
  for (const unsigned i : blocks) {
    shared.fill();
    run_block({i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y});
    if (!complaint.empty()) return;
  }
}

}  // namespace

void run(const Launch& launch) {
  launched = &launch;
  gridDim = launch.grid;
  blockDim = launch.block;
  const dim3 block = launch.block;
  threads.resize(static_cast<size_t>(block.x) * block.y * block.z);
  order.resize(threads.size());
  meetings.resize((threads.size() + 31) / 32);
  for (int i = 0; i < static_cast<int>(threads.size()); ++i) {
    threads[i].number = i;
    threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  run_blocks();
  if (!complaint.empty())
    fail(kernel_name(launch.kernel, launch.signature) + ", block " + text(blockIdx) + " of " +
         text(gridDim) + ": " + complaint);
}

// ------------------------------------------------------------------------- what device code uses

void fault(std::string what) {
  {
    const std::string told = std::move(what);  // nobody will unwind this stack
    complaint = "thread " + text(current->index) + " " + told;
  }
  stop();
  std::abort();  // nobody resumes it
}

void* dynamic_shared() {
  return dynamic_memory;
}

int barrier(bool predicate) {
  predicates += predicate;
  if (++at_barrier < static_cast<int>(threads.size())) {
    current->state = Thread::kAtBarrier;
  } else {
    for (Thread& thread : threads) thread.state = Thread::kReady;
    barrier_result = predicates;
    at_barrier = predicates = 0;
    passed_barrier = true;
  }
  stop();
  return barrier_result;
}

int lane() {
  return current->number % 32;
}

unsigned running_lanes() {
  const int first = current->number - lane();
  unsigned running = 0;
  for (int i = 0; i < 32 && first + i < static_cast<int>(threads.size()); ++i)
    if (threads[first + i].state != Thread::kEnded) running |= 1u << i;
  return running;
}

Meeting* meet(Together what, unsigned mask, const void* value, size_t bytes) {
  const int warp = current->number / 32, here = lane();
  const int lanes = std::min(32, static_cast<int>(threads.size()) - warp * 32);
  const unsigned wanted =
      mask & (0xffffffffu >> (32 - lanes));  // lanes that never were are excused
  if (!(mask >> here & 1))
    fault("calls " + std::string(name(what)) + " with mask " + hexadecimal(mask) +
          ", which does not name its own lane");
  Meeting* meeting = nullptr;
  for (Meeting* known : meetings[warp])
    if (known->what == what && known->mask == wanted) meeting = known;
  if (meeting == nullptr) {
    if (free_meetings.empty()) {
      all_meetings.push_back(std::make_unique<Meeting>());
      free_meetings.push_back(all_meetings.back().get());
    }
    meeting = free_meetings.back();
    free_meetings.pop_back();
    meeting->what = what;
    meeting->mask = wanted;
    meeting->arrived = 0;
    if (wanted != 0xffffffffu) std::memset(meeting->values, 0xff, sizeof meeting->values);
    meetings[warp].push_back(meeting);
  }
  if (bytes > 0) std::memcpy(meeting->values[here], value, bytes);
  meeting->arrived |= 1u << here;
  current->state = Thread::kAtMeeting;
  if (meeting->arrived == wanted) {
    std::erase(meetings[warp], meeting);
    for (int i = 0; i < lanes; ++i)
      if (wanted >> i & 1) threads[warp * 32 + i].state = Thread::kReady;
  }
  stop();
  return meeting;
}

const unsigned char* met_values(const Meeting* meeting) {
  return meeting->values[0];
}

void leave(Meeting* meeting) {
  meeting->arrived &= ~(1u << lane());
  if (meeting->arrived == 0) free_meetings.push_back(meeting);
}

void copy_later(void* to, const void* from, size_t bytes) {
  if (current->copies.empty()) current->copies.emplace_back();
  current->copies.back().push_back({to, from, bytes});
}

void commit_copies() {
  if (current->copies.empty()) current->copies.emplace_back();
  current->copies.emplace_back();
}

void wait_for_copies(int groups_left) {
  auto& groups = current->copies;
  const int closed = static_cast<int>(groups.size()) - 1;
  const int done = closed - groups_left;
  for (int i = 0; i < done; ++i)
    for (const Copy& copy : groups[i]) {
      if (copy.from != nullptr)
        std::memcpy(copy.to, copy.from, copy.bytes);
      else
        std::memset(copy.to, 0, copy.bytes);
    }
  if (done > 0) groups.erase(groups.begin(), groups.begin() + done);
}

void wait_for_kernel_ahead() {
  current->waited = ptx_version() >= 90;
}

}  // namespace emulation
