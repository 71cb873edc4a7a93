// Vectors of int8, and the rounding of rows to them.
#pragma once

#include "simd/loop.h"

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

// To the nearest integer, ties to even, of numbers below 2^22.
LLMCORE_INLINE VecI round_to_int(Vec x) {
  constexpr float kMagic = 0x1.8p23f;
  return __builtin_bit_cast(VecI, x + kMagic) - __builtin_bit_cast(int32_t, kMagic);
}

// How a row becomes integers from -127 to 127.
struct Rounding {
  float scale;    // NaN where a row has an infinity or a NaN
  float inverse;  // elements times this are the integers
};
LLMCORE_INLINE Rounding int8_rounding(const float* row, int64_t count) {
  Vec largest = {}, finite = {};
  for_each_vector(0, count, [&](int64_t i, int64_t n) {
    const Vec x = load_up_to(row + i, n);
    largest = max(largest, max(x, -x));
    finite += x - x;
  });
  const float most = reduce_max(largest);
  return {most / 127.0f + reduce_add(finite), most > 0.0f ? 127.0f / most : 0.0f};
}

}  // namespace llmcore::LLMCORE_ISA
