// Dropout inside any kernel: the masks of simd/philox.h, one thread's elements at a time.
#pragma once

#include <cuda_runtime.h>

#include "core/random.h"

namespace llmcore::cuda {

// The stream of its random words: on a GPU the step is added to it.
__device__ __forceinline__ uint64_t stream_of(const Dropout& dropout) {
  return dropout.stream + (dropout.added == nullptr ? 0 : *dropout.added);
}

// What dropout multiplies elements element, element + 1, ... by: 0, or 1 / (1 - p) for those it
// keeps. A kernel multiplies only where dropout.p > 0; forward and backward use the same factors.
// One block of random words makes the factors of four elements: aligned fours, and aligned pairs,
// take no more of them than they must.
template <int kCount>
__device__ __forceinline__ void dropout_factors(const Dropout& dropout, uint64_t element,
                                                float (&factor)[kCount]) {
  constexpr int kBlocks = (kCount + 3) / 4;
  const int shift = static_cast<int>(element % 4);
  const uint64_t stream = stream_of(dropout);
  uint32_t words[4 * kBlocks + 4] = {};
#pragma unroll
  for (int block = 0; block <= kBlocks; ++block)
    if (block < kBlocks || shift + kCount > 4 * kBlocks) {
      const Philox4 random = philox(dropout.seed, stream, element / 4 + block);
#pragma unroll
      for (int i = 0; i < 4; ++i) words[4 * block + i] = random.lane[i];
    }
  const uint32_t threshold = dropout_threshold(dropout.p);
  const float kept = 1.0f / (1.0f - dropout.p);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    // Places known when compiled, so that the words stay in registers.
    const uint32_t word = shift == 0   ? words[i]
                          : shift == 1 ? words[i + 1]
                          : shift == 2 ? words[i + 2]
                                       : words[i + 3];
    factor[i] = word >= threshold ? kept : 0.0f;
  }
}

// The same of one element.
__device__ __forceinline__ float dropout_factor(const Dropout& dropout, uint64_t element) {
  float factor[1];
  dropout_factors(dropout, element, factor);
  return factor[0];
}

}  // namespace llmcore::cuda
