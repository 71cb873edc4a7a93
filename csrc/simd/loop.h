// Loops over arrays a vector at a time, their ragged ends, and how they are cut into tasks.
#pragma once

#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {

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

// Sum of f(i, count) over the vectors of [0, width), where f zeroes the lanes from `count` on.
// Partial sums of 64 vectors are added up, so that the error of long rows does not grow with their
// length.
template <class F>
LLMCORE_INLINE float row_sum(int64_t width, F f) {
  constexpr int64_t kBlock = 64 * kLanes;
  Vec total{};
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    Vec sum{};
    const int64_t end = begin + kBlock < width ? begin + kBlock : width;
    for_each_vector(begin, end, [&](int64_t i, int64_t n) { sum += f(i, n); });
    total += sum;
  }
  return reduce_add(total);
}

}  // namespace llmcore::LLMCORE_ISA
