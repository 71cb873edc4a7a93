// Loops over arrays a vector at a time, their ragged ends, and how they are cut into tasks.
#pragma once

#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {

LLMCORE_INLINE constexpr int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
LLMCORE_INLINE constexpr int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
LLMCORE_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
LLMCORE_INLINE constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Elements one task of a parallel loop takes, roughly: enough to hide what starting it costs.
// Inputs up to this size run on the calling thread alone.
inline constexpr int64_t kTaskElements = 16384;

// Rows of `width` elements per task.
LLMCORE_INLINE int64_t rows_per_task(int64_t width) {
  return width < kTaskElements ? kTaskElements / width : 1;
}

// min(count, kLanes) elements; the other lanes are `fill`.
LLMCORE_INLINE Vec load_up_to(const float* p, int64_t count, float fill = 0.0f) {
  return count >= kLanes ? load(p) : load_partial(p, count, fill);
}
LLMCORE_INLINE void store_up_to(float* p, Vec v, int64_t count) {
  if (count >= kLanes)
    store(p, v);
  else
    store_partial(p, v, count);
}

// Lanes at or beyond `count` become zero.
LLMCORE_INLINE Vec mask_tail(Vec v, int64_t count) {
  for (int64_t i = count; i < kLanes; ++i) v[i] = 0.0f;
  return v;
}

// body(i, kLanes) for every whole vector of [begin, end), then body(i, rest) for what is left.
template <class Body>
LLMCORE_INLINE void for_each_vector(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, int64_t{kLanes});
  if (i < end) body(i, end - i);
}

// kCount sums over a row in one pass: f(i, n, terms) sets the terms of elements i to i + n, zero in
// the lanes from n on. Four sums run side by side to hide the latency of an addition, and are added
// up every 64 vectors, so that the error of long rows does not grow with their length.
template <int kCount, class F>
LLMCORE_INLINE void row_sums(int64_t width, float (&out)[kCount], F f) {
  constexpr int kChains = 4;
  constexpr int64_t kStep = kChains * kLanes, kBlock = 16 * kStep;
  Vec total[kCount] = {};
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t end = begin + kBlock < width ? begin + kBlock : width;
    Vec sum[kChains][kCount] = {};
    const auto add = [&](int chain, int64_t i, int64_t n) {
      Vec terms[kCount];
      f(i, n, terms);
      for (int k = 0; k < kCount; ++k) sum[chain][k] += terms[k];
    };
    int64_t i = begin;
    for (; i + kStep <= end; i += kStep)
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) add(chain, i + chain * kLanes, kLanes);
    for_each_vector(i, end, [&](int64_t i, int64_t n) { add(0, i, n); });
    for (int k = 0; k < kCount; ++k) total[k] += (sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]);
  }
  for (int k = 0; k < kCount; ++k) out[k] = reduce_add(total[k]);
}

// Sum over a row of f(i, n), which zeroes the lanes from n on.
template <class F>
LLMCORE_INLINE float row_sum(int64_t width, F f) {
  float sum[1];
  row_sums(width, sum, [&](int64_t i, int64_t n, Vec* terms) { terms[0] = f(i, n); });
  return sum[0];
}

}  // namespace llmcore::LLMCORE_ISA
