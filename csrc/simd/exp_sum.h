// The two reductions under every softmax: a row's maximum, and the sum of its exponentials.
#pragma once

#include "simd/loop.h"
#include "simd/math.h"

namespace llmcore::LLMCORE_ISA {

// The largest element; 0 where all are -inf, so that subtracting it from them leaves -inf.
LLMCORE_INLINE float finite_max(const float* x, int64_t width) {
  const float lowest = -__builtin_inff();
  Vec largest = broadcast(lowest), other = largest;
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    largest = max(largest, load(x + i));
    other = max(other, load(x + i + kLanes));
  }
  for_each_vector(i, width, [&](int64_t i, int64_t n) {
    largest = max(largest, load_up_to(x + i, n, lowest));
  });
  const float result = reduce_max(max(largest, other));
  return result == lowest ? 0.0f : result;
}

// Sum of e^(x - max); the terms are stored to y unless it is null. y may be x.
LLMCORE_INLINE float exp_sum(const float* x, float* y, int64_t width, float max) {
  return row_sum(width, [&](int64_t i, int64_t n) {
    const Vec term = exp_nonpositive(load_up_to(x + i, n, -__builtin_inff()) - max);  // 0 beyond n
    if (y != nullptr) store_up_to(y + i, term, n);
    return term;
  });
}

}  // namespace llmcore::LLMCORE_ISA
