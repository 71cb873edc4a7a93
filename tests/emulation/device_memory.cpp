// A range of addresses that is opened for the device's work and closed after it.
#include "device_memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>

#include "settings.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) static_cast<void>(data)
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) static_cast<void>(data)
#endif

namespace emulation {
namespace {

// Addresses of freed memory are not used again before so many others were.
constexpr size_t kDelay = 64 << 20;
constexpr size_t kAddresses = size_t{16} << 30;
constexpr size_t kPage = 4096, kHugePage = 2 << 20;
constexpr char kComplaint[] = "emulated GPU: the host touches the device's memory\n";

using Ranges = std::map<char*, size_t>;

struct Heap {
  char* base;
  char* next;  // where to look for room
  Ranges taken, mapped;
  int open = 0;
  struct sigaction before {};

  Heap();
};

Heap& heap() {
  static Heap& heap = *new Heap;
  return heap;
}

constexpr size_t up(size_t bytes, size_t step) {
  return (bytes + step - 1) / step * step;
}

bool inside(const Ranges& ranges, const char* address) {
  const auto after = ranges.upper_bound(const_cast<char*>(address));
  return after != ranges.begin() && address < std::prev(after)->first + std::prev(after)->second;
}

// Says why, and lets the program crash as it would have.
void tell(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const char*>(info->si_addr);
  const Heap& memory = heap();
  if (memory.open == 0 && (inside(memory.taken, address) || inside(memory.mapped, address)))
      [[maybe_unused]]
    const auto written = write(STDERR_FILENO, kComplaint, sizeof kComplaint - 1);
  sigaction(SIGSEGV, &memory.before, nullptr);
}

Heap::Heap() {
  void* found = mmap(nullptr, kAddresses + kHugePage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  base = next = reinterpret_cast<char*>(up(reinterpret_cast<size_t>(found), kHugePage));
  madvise(base, kAddresses, MADV_HUGEPAGE);  // each costs as much as a small one to open and close
  if (!is_apart()) return;
  struct sigaction action {};
  action.sa_sigaction = tell;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &before);
}

// From the first address to the last that is taken, in whole huge pages.
size_t taken_bytes() {
  const auto& [data, bytes] = *heap().taken.rbegin();
  return up(static_cast<size_t>(data - heap().base) + bytes, kHugePage);
}

void protect(int protection) {
  Heap& memory = heap();
  if (!memory.taken.empty()) mprotect(memory.base, taken_bytes(), protection);
  for (const auto& [data, bytes] : memory.mapped) mprotect(data, bytes, protection);
}

// The first gap behind `start` that has room, or null.
char* find_gap(const Ranges& taken, char* start, char* end, size_t bytes) {
  auto next = taken.lower_bound(start);
  if (next != taken.begin())
    start = std::max(start, std::prev(next)->first + std::prev(next)->second);
  for (; next != taken.end(); ++next) {
    if (start + bytes <= next->first) return start;
    start = next->first + next->second;
  }
  return start + bytes <= end ? start : nullptr;
}

}  // namespace

void* take_device_memory(size_t bytes) {
  Heap& memory = heap();
  const size_t room = up(bytes, kPage) + kPage;  // a page to fall into
  char* end = memory.base + kAddresses;
  if (memory.next > memory.base + kDelay) memory.next = memory.base;
  char* data = find_gap(memory.taken, memory.next, end, room);
  if (data == nullptr) data = find_gap(memory.taken, memory.base, end, room);
  if (data == nullptr) return nullptr;
  memory.taken[data] = room;
  memory.next = data + room;
  if (!is_apart() || memory.open > 0) mprotect(data, room, PROT_READ | PROT_WRITE);
  ASAN_POISON_MEMORY_REGION(data, room);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void give_device_memory(void* data) {
  const auto found = heap().taken.find(static_cast<char*>(data));
  ASAN_POISON_MEMORY_REGION(data, found->second);
  madvise(data, found->second, MADV_DONTNEED);
  heap().taken.erase(found);
}

void open_to_device(void* data, size_t bytes) {
  heap().mapped[static_cast<char*>(data)] = bytes;
  if (!is_apart() || heap().open > 0) mprotect(data, bytes, PROT_READ | PROT_WRITE);
}

void forget_range(void* data) {
  heap().mapped.erase(static_cast<char*>(data));
}

Access::Access() {
  if (is_apart() && heap().open++ == 0) protect(PROT_READ | PROT_WRITE);
}

Access::~Access() {
  if (is_apart() && --heap().open == 0) protect(PROT_NONE);
}

}  // namespace emulation
