// Vectors of int8, and the rounding of rows to them.
#pragma once

#include "simd/half.h"
#include "simd/loop.h"
#include "simd/transpose.h"

namespace llmcore::LLMCORE_ISA {

LLMCORE_INLINE Vec to_float(VecI v) {
  return __builtin_convertvector(v, Vec);
}

using Bytes [[gnu::vector_size(kLanes), gnu::aligned(1), gnu::may_alias]] = int8_t;

LLMCORE_INLINE VecI load_bytes(const int8_t* from) {
#if defined(__AVX2__)
  // GCC 12 widens them in halves of halves.
  VecI wide;
  __asm__("vpmovsxbd %1, %0" : "=v"(wide) : "m"(*reinterpret_cast<const Bytes*>(from)));
  return wide;
#else
  using Halves [[gnu::vector_size(2 * kLanes)]] = int16_t;
  Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, Halves), VecI);
#endif
}
LLMCORE_INLINE void store_bytes(int8_t* to, VecI v) {
  const Bytes bytes = __builtin_convertvector(v, Bytes);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}

// To the nearest integer, ties to even, of numbers below 2^22: added to this, it is what the lowest
// bits hold.
inline constexpr float kRounder = 0x1.8p23f;
LLMCORE_INLINE VecI round_to_int(Vec x) {
  return __builtin_bit_cast(VecI, x + kRounder) - __builtin_bit_cast(int32_t, kRounder);
}

// How a row becomes integers from -127 to 127.
struct Rounding {
  float scale;    // NaN where a row has an infinity or a NaN
  float inverse;  // elements times this are the integers
};
LLMCORE_INLINE Rounding int8_rounding(const float* row, int64_t count) {
  VecU largest = {};  // magnitudes as integers: NaN is above infinity, that above all others
  for_each_vector(0, count, [&](int64_t i, int64_t n) {
    const VecU magnitude = as_bits(load_up_to(row + i, n)) & 0x7fffffffu;
    largest = largest > magnitude ? largest : magnitude;
  });
  uint32_t lanes[kLanes];
  __builtin_memcpy(lanes, &largest, sizeof(lanes));
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  const float most = __builtin_bit_cast(float, lanes[0]);
  return {most / 127.0f + (most - most), most > 0.0f ? 127.0f / most : 0.0f};
}

// The lower half of each lane of a, then of b.
template <int... kHalf>
LLMCORE_INLINE VecU lower_halves(VecU a, VecU b, LaneList<kHalf...>) {
  using Halves [[gnu::vector_size(kVecBytes)]] = uint16_t;
  return __builtin_bit_cast(
      VecU, __builtin_shufflevector(__builtin_bit_cast(Halves, a), __builtin_bit_cast(Halves, b),
                                    (2 * kHalf)...));
}

// 4 * kLanes numbers times `inverse` as integers, four a lane in order; zero beyond `count`.
LLMCORE_INLINE VecU int8_words(const float* from, int64_t count, float inverse) {
  constexpr typename LaneRange<2 * kLanes>::Type kAll{};
  const auto pairs = [&](int64_t first) {  // in the lower halves of the lanes
    const auto rounded = [&](int64_t i) {
      return as_bits(load_up_to(from + i, max(count - i, 0)) * inverse + kRounder);
    };
    const VecU both = lower_halves(rounded(first), rounded(first + kLanes), kAll);
    return (both & 0xffu) | (both >> 8 & ~0xffu);
  };
  return lower_halves(pairs(0), pairs(2 * kLanes), kAll);
}

}  // namespace llmcore::LLMCORE_ISA
