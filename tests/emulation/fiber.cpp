// Context switches in a few instructions on x86-64, by <ucontext.h> elsewhere; a pool of stacks.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Pushes what a function must preserve, changes stacks, and pops it there.
asm(R"(
.text
.type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch_stack, . - emulation_switch_stack
)");
extern "C" void emulation_switch_stack(void** save, void* load)
    __attribute__((visibility("hidden")));
#endif

namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
// Stacks a multiple of 4 KiB apart would meet in the same few lines of the cache.
constexpr size_t kStackStride = kStackBytes + 192;
constexpr int kStacksAtOnce = 64;

std::vector<Stack>& pool() {
  static std::vector<Stack>& stacks = *new std::vector<Stack>;
  return stacks;
}

}  // namespace

Stack take_stack() {
  std::vector<Stack>& stacks = pool();
  if (stacks.empty()) {
    void* memory = mmap(nullptr, kStacksAtOnce * kStackStride, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    for (int i = kStacksAtOnce; i-- > 0;)
      stacks.push_back({static_cast<char*>(memory) + i * kStackStride, kStackBytes});
  }
  const Stack stack = stacks.back();
  stacks.pop_back();
  return stack;
}

void give_stack(Stack stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack.bottom, stack.bytes);  // of a thread that never returned
#endif
  pool().push_back(stack);
}

void prepare(Context& to, Stack stack, void (*entry)()) {
  to.stack = stack;
  to.fake_stack = nullptr;
#if defined(__x86_64__)
  // Six registers, where to return to, and a null return address for whoever unwinds the stack.
  void** top = reinterpret_cast<void**>(stack.bottom + stack.bytes);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(entry);
  for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
  to.stack_pointer = top - 8;
#else
  getcontext(&to.machine);
  to.machine.uc_stack.ss_sp = stack.bottom;
  to.machine.uc_stack.ss_size = stack.bytes;
  to.machine.uc_link = nullptr;
  makecontext(&to.machine, entry, 0);
#endif
}

void enter([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &from.stack.bytes);
  from.stack.bottom = static_cast<char*>(const_cast<void*>(bottom));
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool ended) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ended ? nullptr : &from.fake_stack, to.stack.bottom,
                                 to.stack.bytes);
#endif
#if defined(__x86_64__)
  emulation_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.machine, &to.machine);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emulation
