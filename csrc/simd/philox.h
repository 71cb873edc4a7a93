// Philox 4x32-10 (core/random.h) for vectors of consecutive elements: dropout inside any kernel.
#pragma once

#include "core/random.h"
#include "simd/vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace llmcore::LLMCORE_ISA {

// Half a block a lane, two blocks' worth of state in a pair of lanes' low halves.
using PhiloxLanes [[gnu::vector_size(kVecBytes)]] = uint64_t;

// The 64-bit products of the lanes' low halves, the two lanes of a pair exchanged. GCC has no
// portable spelling of this multiplication; done as a full 64-bit one it takes AVX2 twice as long.
LLMCORE_INLINE PhiloxLanes philox_products(PhiloxLanes a, PhiloxLanes b) {
#if defined(__AVX512F__)
  // The unmasked intrinsic warns of its own uninitialised operand in GCC 12.
  const auto product = reinterpret_cast<PhiloxLanes>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
  return __builtin_shufflevector(product, product, 1, 0, 3, 2, 5, 4, 7, 6);
#elif defined(__AVX2__)
  const auto product = reinterpret_cast<PhiloxLanes>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
  return __builtin_shufflevector(product, product, 1, 0, 3, 2);
#elif defined(__x86_64__)
  const auto product = reinterpret_cast<PhiloxLanes>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
  return __builtin_shufflevector(product, product, 1, 0);
#else
  const PhiloxLanes product = (a & 0xffffffffu) * (b & 0xffffffffu);
  return __builtin_shufflevector(product, product, 1, 0);
#endif
}

// The random words of elements element, element + 1, ...; element is a multiple of 4. Lane 2i holds
// the counter words (c0, c1) of block i as (x, y), lane 2i + 1 its (c2, c3): together, four words
// in order.
LLMCORE_INLINE VecU philox_aligned(uint64_t seed, uint64_t stream, uint64_t element) {
  PhiloxLanes counter{}, key{}, multiplier{}, increment{};
  for (int i = 0; i < kLanes / 2; ++i) {
    const bool second = i % 2 != 0;
    counter[i] = second ? stream : element / 4 + i / 2;
    key[i] = second ? seed >> 32 : seed & 0xffffffffu;
    multiplier[i] = second ? 0xCD9E8D57u : 0xD2511F53u;
    increment[i] = second ? 0xBB67AE85u : 0x9E3779B9u;
  }
  PhiloxLanes x = counter, y = counter >> 32;  // only low halves count
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const PhiloxLanes product = philox_products(x, multiplier);
    x = (product >> 32) ^ y ^ key;
    y = product;
    key += increment;
  }
  return __builtin_bit_cast(VecU, (x & 0xffffffffu) | (y << 32));
}

// The same from any element on. Aligned is twice as fast: rows whose width is a multiple of 4 are.
LLMCORE_INLINE VecU philox_words(uint64_t seed, uint64_t stream, uint64_t element) {
  const uint64_t shift = element % 4;
  const VecU words = philox_aligned(seed, stream, element - shift);
  if (shift == 0) return words;
  const VecU next = philox_aligned(seed, stream, element - shift + kLanes);
  uint32_t both[2 * kLanes];
  __builtin_memcpy(both, &words, sizeof(words));
  __builtin_memcpy(both + kLanes, &next, sizeof(next));
  VecU shifted;
  __builtin_memcpy(&shifted, both + shift, sizeof(shifted));
  return shifted;
}

// What dropout multiplies elements element, element + 1, ... by: 0, or 1 / (1 - p) for those it
// keeps. A kernel multiplies only where dropout.p > 0; forward and backward use the same factors.
LLMCORE_INLINE Vec dropout_factor(const Dropout& dropout, uint64_t element) {
  const VecU words = philox_words(dropout.seed, dropout.stream, element);
  const VecU threshold = dropout_threshold(dropout.p) - VecU{};
  return words >= threshold ? broadcast(1.0f / (1.0f - dropout.p)) : Vec{};
}

}  // namespace llmcore::LLMCORE_ISA
