// Reserves the arena's addresses and moves its two ends.
#include "core/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "core/buffer.h"
#include "core/error.h"
#include "core/machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace llmcore {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

#if defined(NDEBUG)
void poison(void*, int64_t) {}
#else
// Released memory reads as NaN, so that a use after release shows in the result.
void poison(void* data, int64_t bytes) {
  std::memset(data, 0xff, bytes);
}
#endif

}  // namespace

Arena::Arena() {
  // Some systems limit address space: halve until it fits.
  for (reserved_ = memory_bytes() / kHugePage * kHugePage; reserved_ >= kHugePage * 8;
       reserved_ = reserved_ / 2 / kHugePage * kHugePage) {
    void* base = mmap(nullptr, reserved_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) continue;
    base_ = static_cast<char*>(base);
#if defined(MADV_HUGEPAGE)
    madvise(base_, reserved_, MADV_HUGEPAGE);
#endif
    return;
  }
  throw OutOfMemory("out of memory: could not reserve address space for activations");
}

Arena::~Arena() {
  ASAN_UNPOISON_MEMORY_REGION(base_, reserved_);
  munmap(base_, reserved_);
  detail::count_memory(-peak_bytes());
}

void Arena::take(int64_t& end, int64_t& peak, int64_t bytes) {
  const int64_t size = std::max<int64_t>(bytes + kAlign - 1, 1) / kAlign * kAlign;
  CHECK(keep_ + scratch_ + size <= reserved_, OutOfMemory, "out of memory: activations need ",
        (keep_ + scratch_ + size) >> 20, " MiB, this process may use ", reserved_ >> 20,
        " MiB; use a smaller batch or shorter sequences, or turn recompute on");
  end += size;
  if (end > peak) {
    detail::count_memory(end - peak);
    peak = end;
  }
}

void* Arena::keep_bytes(int64_t bytes) {
  char* data = base_ + keep_;
  take(keep_, peak_keep_, bytes);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void* Arena::scratch_bytes(int64_t bytes) {
  take(scratch_, peak_scratch_, bytes);
  char* data = base_ + reserved_ - scratch_;
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void Arena::release_keep(int64_t mark) {
  poison(base_ + mark, keep_ - mark);
  ASAN_POISON_MEMORY_REGION(base_ + mark, keep_ - mark);
  keep_ = mark;
}

void Arena::release_scratch(int64_t mark) {
  char* data = base_ + reserved_ - scratch_;
  poison(data, scratch_ - mark);
  ASAN_POISON_MEMORY_REGION(data, scratch_ - mark);
  scratch_ = mark;
}

void Arena::trim() {
  CHECK(keep_ == 0 && scratch_ == 0, ConfigError, "Arena::trim: the arena is in use");
  detail::count_memory(-peak_bytes());
  peak_keep_ = peak_scratch_ = 0;
  ASAN_UNPOISON_MEMORY_REGION(base_, reserved_);
  madvise(base_, reserved_, MADV_DONTNEED);
}

}  // namespace llmcore
