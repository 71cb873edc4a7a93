// Memory that is mapped but nobody's: debug builds fill it with NaN, and AddressSanitizer is told.
//
// The arena and buffers hand out parts of larger maps, which the sanitizer knows nothing of.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(LLMCORE_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace llmcore {

#if defined(LLMCORE_ASAN)
inline constexpr bool kAddressSanitizer = true;
// Kept free behind every block, so that a vector too many hits it.
inline constexpr int64_t kRedZone = 128;

inline void forbid(const void* data, int64_t bytes) {
  __asan_poison_memory_region(data, static_cast<size_t>(bytes));
}
inline void allow(const void* data, int64_t bytes) {
  __asan_unpoison_memory_region(data, static_cast<size_t>(bytes));
}
#else
inline constexpr bool kAddressSanitizer = false;
inline constexpr int64_t kRedZone = 0;

inline void forbid(const void*, int64_t) {}
inline void allow(const void*, int64_t) {}
#endif

#if defined(NDEBUG)
inline void fill_with_nan(void*, int64_t) {}
#else
inline void fill_with_nan(void* data, int64_t bytes) {
  std::memset(data, 0xff, static_cast<size_t>(bytes));
}
#endif

}  // namespace llmcore
