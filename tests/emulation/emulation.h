// How the emulation is told what to do: by tests, and by device code through the toolkit's names.
//
// LLMCORE_EMULATED_ORDER=forward|backward|random:7 and LLMCORE_EMULATED_EAGER=1 set the same from
// outside; LLMCORE_EMULATED_APART=0 lets the host touch the device's memory.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>

#include "vector_types.h"

namespace emulation {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// ------------------------------------------------------------------------------------- settings

// In which order the threads of a block, the blocks of a grid and independent streams run:
// "forward", "backward", or "random:SEED", which shuffles threads anew at every barrier.
// Throws std::invalid_argument for another one.
void set_order(const std::string& order);

// Work runs when it is queued, instead of when something waits for it.
void set_eager(bool eager);

// In a forked process every call is a fault, as CUDA's may never return there; from now on none is.
void survive_forks();

// What a kernel must not do, and no GPU would tell: a barrier that some threads never reach.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A fault is printed and ends the program, unless it is to be thrown from whatever ran the kernel.
void throw_faults(bool thrown);

// ------------------------------------------------------------------------- what device code uses

// A fault of the thread that runs.
[[noreturn]] void fault(std::string what);

// The block's dynamic shared memory, aligned to 128 bytes.
void* dynamic_shared();

// Waits for all threads of the block; returns how many passed true.
int barrier(bool predicate = false);

// What the lanes of a warp do together; all lanes of a mask must do the same.
enum class Together { kSync, kShuffle, kVote, kMultiply, kLoadMatrix };

struct Meeting;
inline constexpr size_t kExchangedBytes = 64;

int lane();                // of the thread that runs
unsigned running_lanes();  // those of its warp that have not ended
Meeting* meet(Together what, unsigned mask, const void* value, size_t bytes);
const unsigned char* met_values(const Meeting* meeting);  // kExchangedBytes for each lane
void leave(Meeting* meeting);

// What every lane brought to a meeting. Lanes that were not called have all bits set.
template <class T>
class Exchanged {
 public:
  Exchanged(Together what, unsigned mask, const T& value)
      : meeting_(meet(what, mask, &value, sizeof(T))), values_(met_values(meeting_)) {
    static_assert(sizeof(T) <= kExchangedBytes);
  }
  ~Exchanged() { leave(meeting_); }
  Exchanged(const Exchanged&) = delete;
  Exchanged& operator=(const Exchanged&) = delete;

  const T& operator[](int lane) const {
    return *reinterpret_cast<const T*>(values_ + lane * kExchangedBytes);
  }

 private:
  Meeting* meeting_;
  const unsigned char* values_;
};

template <class T>
Exchanged<T> warp_exchange(Together what, unsigned mask, const T& value) {
  return {what, mask, value};
}

// Copies from global to shared memory that take place when the thread waits for them.
void copy_later(void* to, const void* from, size_t bytes);  // zeros where `from` is null
void commit_copies();
void wait_for_copies(int groups_left);

// A thread of a kernel that may start early must do so before it ends.
void wait_for_kernel_ahead();

// ------------------------------------------------------------------------- what the runtime uses

struct Launch {
  std::function<void()> thread;  // what each thread runs
  const void* kernel;
  const char* signature;
  dim3 grid, block;
  size_t shared_bytes;
  bool starts_early = false;  // it waits by itself for what is ahead
};

// Runs all blocks, now.
void run(const Launch& launch);

// Puts things that could be done in any order in that of set_order; they come in forward order.
void arrange(std::span<int> items);
// Which of so many to do next: 0 forward, the last backward.
int choose(int count);

}  // namespace emulation

// The built-in variables.
inline constinit uint3 threadIdx{}, blockIdx{};
inline constinit dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;
