// The two reductions under every softmax, in one pass: a row's maximum, and the sum of its
// exponentials.
#pragma once

#include "cuda/reduce.h"
#include "cuda/rows.h"

namespace llmcore::cuda {

struct ExpSum {
  float max;  // 0 where all elements are -inf, so that subtracting it from them leaves -inf
  float sum;  // of e^(x - max)
};

__device__ __forceinline__ float finite(float max) {
  return max == -INFINITY ? 0.0f : max;
}

// By a block of whole warps; `shared` [32]. All get the result. Every thread sums below the
// maximum it has seen so far (Milakov and Gimelshein 2018).
template <class T, bool kAligned>
__device__ __forceinline__ ExpSum exp_sum(const T* row, int64_t width, float* shared) {
  float max = -INFINITY, sum = 0.0f;
  const int64_t steps = row_steps<T>(width);
#pragma unroll 2
  for (int64_t step = 0; step < steps; ++step) {
    float x[kPack<T>];
    load_step<T, kAligned>(row, width, step, -INFINITY, x);
    float larger = max;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) larger = x[i] > larger ? x[i] : larger;
    if (larger > max) {
      sum *= expf(max - larger);
      max = larger;
    }
    float terms = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) terms += expf(x[i] - finite(max));
    sum += terms;
  }
  const float highest = finite(block_max(max, shared));
  return {highest, block_sum(sum * expf(max - highest), shared)};
}

}  // namespace llmcore::cuda
