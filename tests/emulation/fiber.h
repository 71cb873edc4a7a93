// Coroutines with stacks of their own: what CUDA threads run on.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

struct Stack {
  char* bottom = nullptr;
  size_t bytes = 0;
};

// Stacks are kept for the next who asks.
Stack take_stack();
void give_stack(Stack stack);

// Where an execution that is not running goes on.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t machine;
#endif
  Stack stack;                 // what AddressSanitizer is told
  void* fake_stack = nullptr;  // its own
};

// `to` becomes a call of `entry`, which must not return, on that stack.
void prepare(Context& to, Stack stack, void (*entry)());

// The first thing that an entry does; `from` is who switched to it.
void enter(Context& from);

// Leaves `from`, for good if it has ended, and goes on at `to`.
void switch_context(Context& from, Context& to, bool ended = false);

}  // namespace emulation
