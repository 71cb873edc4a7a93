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

// e^x, of numbers whose distance is exact or small: in half the instructions of expf().
__device__ __forceinline__ float exp_below(float x, float max) {
  constexpr float kLog2E = 1.44269504f;
  return exp2f((x - max) * kLog2E);
}

// By a block of whole warps of the packs that load(step, whole) gives, -inf beyond the row's end;
// `shared` [32]. All get the result. Every thread sums below the maximum it has seen so far
// (Milakov and Gimelshein 2018).
template <class T, class Load>
__device__ __forceinline__ ExpSum exp_sum(int64_t width, float* shared, Load load) {
  float max = -INFINITY, sum = 0.0f;
  each_step<T>(width, [&](int step, auto whole) {
    float x[kPack<T>];
    open_pack<T>(load(step, whole), x);
    float larger = max;
#pragma unroll
    for (float each : x) larger = fmaxf(larger, each);
    if (larger > max) {
      sum *= exp_below(max, larger);
      max = larger;
    }
    const float highest = finite(max);
    float terms = 0.0f;
#pragma unroll
    for (float each : x) terms += exp_below(each, highest);
    sum += terms;
  });
  const float highest = finite(block_max(max, shared));
  return {highest, block_sum(sum * exp_below(max, highest), shared)};
}

}  // namespace llmcore::cuda
