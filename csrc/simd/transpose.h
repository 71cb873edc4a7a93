// Transposes a square block held in registers, for any vector width.
#pragma once

#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {

template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct LaneRange : LaneRange<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct LaneRange<0, kLane...> {
  using Type = LaneList<kLane...>;
};

// In every group of four lanes: the first (or the last) two of a and of b, interleaved.
template <bool kLast, int... kLane>
LLMCORE_INLINE Vec interleave(Vec a, Vec b, LaneList<kLane...>) {
  return __builtin_shufflevector(
      a, b, (kLane / 4 * 4 + (kLast ? 2 : 0) + kLane % 4 / 2 + (kLane % 2 ? kLanes : 0))...);
}

// The even (or the odd) groups of four lanes of a, then those of b.
template <bool kOdd, int... kLane>
LLMCORE_INLINE Vec every_other_group(Vec a, Vec b, LaneList<kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane / 4 * 2 + (kOdd ? 1 : 0)) * 4 + kLane % 4)...);
}

// Element j of rows[i] goes to element i of rows[j]: first within groups of four rows and lanes,
// then whole groups. Each step is one instruction that leaves its operands alone.
LLMCORE_INLINE void transpose(Vec (&rows)[kLanes]) {
  constexpr typename LaneRange<kLanes>::Type kAll{};
  Vec from[kLanes];
#pragma GCC unroll 2
  for (int round = 0; round < 2; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) from[i] = rows[i];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2) {
      const int first = i / 4 * 4 + i % 4 / 2;
      rows[i] = interleave<false>(from[first], from[first + 2], kAll);
      rows[i + 1] = interleave<true>(from[first], from[first + 2], kAll);
    }
  }
#pragma GCC unroll 2
  for (int groups = kLanes / 4; groups > 1; groups /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) from[i] = rows[i];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      const int first = i / 4 * 8 + i % 4;
      rows[i] = every_other_group<false>(from[first], from[first + 4], kAll);
      rows[i + kLanes / 2] = every_other_group<true>(from[first], from[first + 4], kAll);
    }
  }
}

}  // namespace llmcore::LLMCORE_ISA
