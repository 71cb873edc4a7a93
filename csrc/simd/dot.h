// Dot products of a few narrow numbers in every 32-bit lane: pairs of bfloat16, fours of int8. The
// only instructions that vectors of the compiler cannot express, and what stands in for them.
//
// A lane of w holds the weights of one output, a word of x what they are multiplied with. Where the
// instruction is missing both are taken apart into kDotParts lanes that plain arithmetic can use.
#pragma once

#include "simd/half.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define LLMCORE_HAS_DOT 1
#elif defined(__SSE2__)
#include <immintrin.h>
#endif

namespace llmcore::LLMCORE_ISA {

#if defined(LLMCORE_HAS_DOT)
inline constexpr int kDotParts = 1;
#else
inline constexpr int kDotParts = 2;
#endif

using VecS16 [[gnu::vector_size(kVecBytes)]] = int16_t;

// A weight word or a word of x, ready to be multiplied.
struct DotLanes {
  VecU part[kDotParts];
};
struct DotWord {
  uint32_t part[kDotParts];
};

LLMCORE_INLINE DotLanes broadcast(const DotWord& x) {
  DotLanes lanes;
#pragma GCC unroll 2
  for (int i = 0; i < kDotParts; ++i) lanes.part[i] = x.part[i] - VecU{};
  return lanes;
}
// Each lane becomes a word.
LLMCORE_INLINE void store_words(DotWord* to, const DotLanes& lanes) {
  if constexpr (kDotParts == 1) {
    __builtin_memcpy(to, &lanes, sizeof(lanes));
  } else {
    for (int i = 0; i < kLanes; ++i)
      for (int p = 0; p < kDotParts; ++p) to[i].part[p] = lanes.part[p][i];
  }
}

// Four unsigned bytes of weights a lane.
LLMCORE_INLINE DotLanes int8_lanes(VecU w) {
#if defined(LLMCORE_HAS_DOT)
  return {{w}};
#else
  return {{w & 0x00ff00ffu, (w >> 8) & 0x00ff00ffu}};
#endif
}

// Four signed bytes of x a lane.
LLMCORE_INLINE DotLanes signed_lanes(VecU x) {
#if defined(LLMCORE_HAS_DOT)
  return {{x}};
#else
  const VecS16 halves = __builtin_bit_cast(VecS16, x);
  return {{__builtin_bit_cast(VecU, halves << 8 >> 8), __builtin_bit_cast(VecU, halves >> 8)}};
#endif
}

#if !defined(LLMCORE_HAS_DOT)
// sum + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] of the 16-bit halves of lane i.
LLMCORE_INLINE VecI dot_halves(VecI sum, VecU a, VecU b) {
#if defined(__AVX512BW__)
  return sum + __builtin_bit_cast(VecI, _mm512_madd_epi16(__builtin_bit_cast(__m512i, a),
                                                          __builtin_bit_cast(__m512i, b)));
#elif defined(__AVX2__)
  return sum + __builtin_bit_cast(VecI, _mm256_madd_epi16(__builtin_bit_cast(__m256i, a),
                                                          __builtin_bit_cast(__m256i, b)));
#elif defined(__SSE2__)
  return sum + __builtin_bit_cast(VecI, _mm_madd_epi16(__builtin_bit_cast(__m128i, a),
                                                       __builtin_bit_cast(__m128i, b)));
#else
  const VecI x = __builtin_bit_cast(VecI, a), y = __builtin_bit_cast(VecI, b);
  return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}
#endif

// Exact: every instruction set gives the same integers.
LLMCORE_INLINE VecI dot_int8(VecI sum, const DotLanes& w, const DotLanes& x) {
#if defined(LLMCORE_HAS_DOT)
  // In GCC 12 the intrinsic moves every sum through memory.
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w.part[0]), "v"(x.part[0]));
  return sum;
#else
  sum = dot_halves(sum, w.part[0], x.part[0]);
  return dot_halves(sum, w.part[1], x.part[1]);
#endif
}

// Two bfloat16 a lane, the first in the lower half.
LLMCORE_INLINE DotLanes bfloat16_lanes(VecU w) {
#if defined(LLMCORE_HAS_DOT)
  return {{w}};
#else
  return {{w << 16, w & 0xffff0000u}};
#endif
}

// Words of 2 * kLanes numbers, rounded: lane i holds the first vector's elements 2 i and 2 i + 1,
// then the second's.
LLMCORE_INLINE VecU bfloat16_pairs(Vec first, Vec second) {
#if defined(LLMCORE_HAS_DOT)
  VecU words;
  __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(words) : "v"(first), "v"(second));
  return words;
#else
  uint16_t halves[2 * kLanes];
  store_half(halves, narrow_bfloat16(first));
  store_half(halves + kLanes, narrow_bfloat16(second));
  VecU words;
  __builtin_memcpy(&words, halves, sizeof(words));
  return words;
#endif
}

// Lane i holds element i of both.
LLMCORE_INLINE VecU bfloat16_zip(Vec low, Vec high) {
#if defined(LLMCORE_HAS_DOT)
  // Both rounded side by side, then halves i and kLanes + i brought together.
  using Halves [[gnu::vector_size(kVecBytes)]] = uint16_t;
  const Halves halves = __builtin_bit_cast(Halves, bfloat16_pairs(low, high));
  return __builtin_bit_cast(
      VecU,
      __builtin_shufflevector(halves, halves, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                              23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#else
  return narrow_bfloat16(low) | narrow_bfloat16(high) << 16;
#endif
}

LLMCORE_INLINE Vec dot_bfloat16(Vec sum, const DotLanes& w, const DotLanes& x) {
#if defined(LLMCORE_HAS_DOT)
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w.part[0]), "v"(x.part[0]));
  return sum;
#else
  sum = fma(as_floats(w.part[0]), as_floats(x.part[0]), sum);
  return fma(as_floats(w.part[1]), as_floats(x.part[1]), sum);
#endif
}

}  // namespace llmcore::LLMCORE_ISA
