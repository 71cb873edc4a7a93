// Vectors of the instruction set a file is compiled for, over the compiler's vector extensions.
//
// Included by ops/*_cpu.cpp alone. Everything is always inlined: nothing compiled for AVX-512 may
// leave a symbol the linker could pick for the whole library.
#pragma once

#include <cstdint>

#include "core/dtype.h"

#if !defined(LLMCORE_ISA)
#error "simd/vec.h is for the per-ISA kernels; CMake defines LLMCORE_ISA for them"
#endif

namespace llmcore::LLMCORE_ISA {

#if defined(__AVX512F__)
inline constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVecBytes = 32;
#else
inline constexpr int kVecBytes = 16;
#endif

// What there is to hold the sums of a product.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kVecRegisters = 32;
#else
inline constexpr int kVecRegisters = 16;
#endif

// Elements in a float vector: 16, 8 or 4.
inline constexpr int kLanes = kVecBytes / 4;

using Vec [[gnu::vector_size(kVecBytes)]] = float;
using VecI [[gnu::vector_size(kVecBytes)]] = int32_t;
using VecU [[gnu::vector_size(kVecBytes)]] = uint32_t;

LLMCORE_INLINE Vec broadcast(float x) {
  return x - Vec{};
}

LLMCORE_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
LLMCORE_INLINE void store(float* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// For what is not read again soon: where a vector is a cache line, writes past the caches, without
// reading what was there. p is aligned to a vector. Before other threads read, end_streaming().
LLMCORE_INLINE void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#else
  store(p, v);
#endif
}
LLMCORE_INLINE void end_streaming() {
#if defined(__AVX512F__)
  __builtin_ia32_sfence();
#endif
}

// The first `count` < kLanes elements; the other lanes are `fill`.
LLMCORE_INLINE Vec load_partial(const float* p, int64_t count, float fill = 0.0f) {
  Vec v = broadcast(fill);
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
LLMCORE_INLINE void store_partial(float* p, Vec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

LLMCORE_INLINE Vec select(VecI mask, Vec yes, Vec no) {
  return mask ? yes : no;
}
LLMCORE_INLINE Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}
LLMCORE_INLINE Vec min(Vec a, Vec b) {
  return a < b ? a : b;
}

// a * b + c; one rounding where the instruction set has fused multiply-add.
LLMCORE_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}

// Horizontal reductions by halving: a fixed tree.
template <class Combine>
LLMCORE_INLINE float reduce(Vec v, Combine combine) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = combine(lanes[i], lanes[i + half]);
  return lanes[0];
}
LLMCORE_INLINE float reduce_add(Vec v) {
  return reduce(v, [](float a, float b) { return a + b; });
}
LLMCORE_INLINE float reduce_max(Vec v) {
  return reduce(v, [](float a, float b) { return a > b ? a : b; });
}

}  // namespace llmcore::LLMCORE_ISA
