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

// Exchanges the upper right with the lower left element of every 2 x 2 block of (blocks of) lanes
// `kDistance` apart, of rows that are as far apart.
template <int kDistance, int... kLane>
LLMCORE_INLINE void exchange(Vec& upper, Vec& lower, LaneList<kLane...>) {
  const Vec a = upper, b = lower;
  upper =
      __builtin_shufflevector(a, b, (kLane & kDistance ? kLanes + kLane - kDistance : kLane)...);
  lower =
      __builtin_shufflevector(a, b, (kLane & kDistance ? kLanes + kLane : kLane + kDistance)...);
}

// Element j of rows[i] goes to element i of rows[j]: blocks of size 1, 2, 4, ... are exchanged.
template <int kDistance = 1>
LLMCORE_INLINE void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if ((i & kDistance) == 0)
      exchange<kDistance>(rows[i], rows[i + kDistance], typename LaneRange<kLanes>::Type{});
  if constexpr (kDistance * 2 < kLanes) transpose<kDistance * 2>(rows);
}

}  // namespace llmcore::LLMCORE_ISA
