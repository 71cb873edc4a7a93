// Vectors of bfloat16 and float16 bit patterns, one in each 32-bit lane, to and from float.
#pragma once

#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {

LLMCORE_INLINE VecU load_half(const uint16_t* p) {
  using Half [[gnu::vector_size(kVecBytes / 2)]] = uint16_t;
  Half bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return __builtin_convertvector(bits, VecU);
}
LLMCORE_INLINE void store_half(uint16_t* p, VecU bits) {
  using Half [[gnu::vector_size(kVecBytes / 2)]] = uint16_t;
  const Half half = __builtin_convertvector(bits, Half);
  __builtin_memcpy(p, &half, sizeof(half));
}

LLMCORE_INLINE VecU as_bits(Vec x) {
  return __builtin_bit_cast(VecU, x);
}
LLMCORE_INLINE Vec as_floats(VecU bits) {
  return __builtin_bit_cast(Vec, bits);
}

LLMCORE_INLINE Vec widen_bfloat16(VecU bits) {
  return as_floats(bits << 16);
}

// To nearest, ties to even; a NaN stays one.
LLMCORE_INLINE VecU narrow_bfloat16(Vec x) {
  const VecU bits = as_bits(x);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

// The exponent field counts from 15 instead of 127; multiplying by 2^112 moves it there, subnormals
// too.
LLMCORE_INLINE Vec widen_float16(VecU bits) {
  const VecU magnitude = (bits & 0x7fffu) << 13;
  const VecU moved = as_bits(as_floats(magnitude) * 0x1p112f);
  const VecU special = magnitude | 0x7f800000u;  // infinity or NaN
  return as_floats(((bits & 0x8000u) << 16) | (magnitude >= (0x7c00u << 13) ? special : moved));
}

// To nearest, ties to even, by adding a power of two whose last place is the result's: the hardware
// rounds.
LLMCORE_INLINE VecU narrow_float16(Vec x) {
  const VecU bits = as_bits(x), magnitude = bits & 0x7fffffffu;
  // Subnormal results, below 2^-14: their last place, 2^-24, is that of 1/2.
  const VecU subnormal = as_bits(as_floats(magnitude) + 0.5f) - 0x3f000000u;
  const VecU normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  VecU half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? 0x7c00u - VecU{} : half;  // 2^16 and above
  half = magnitude > 0x7f800000u ? 0x7e00u - VecU{} : half;
  return half | ((bits >> 16) & 0x8000u);
}

}  // namespace llmcore::LLMCORE_ISA
