// Integers that all threads of a block add to: the only atomics there are. A sum of integers is the
// same in every order.
#pragma once

#include <cuda_runtime.h>

namespace llmcore::cuda {

__device__ __forceinline__ void add_to(unsigned* sum, unsigned x) {
  atomicAdd(sum, x);
}

// A sum in shared memory, whose hardware adds 32 bits: 64 would be a loop of compare and swap.
struct WideSum {
  unsigned low, high;
  __device__ __forceinline__ unsigned long long value() const {
    return static_cast<unsigned long long>(high) << 32 | low;
  }
};
__device__ __forceinline__ void add_to(WideSum* sum, unsigned long long x) {
  const unsigned low = static_cast<unsigned>(x), before = atomicAdd(&sum->low, low);
  const unsigned high = static_cast<unsigned>(x >> 32) + (before > ~low ? 1u : 0u);
  if (high > 0) atomicAdd(&sum->high, high);
}

// A number that no other thread gets. Which one depends on the order of threads: what is done with
// it must not.
__device__ __forceinline__ unsigned take_number(unsigned* next) {
  return atomicAdd(next, 1u);
}

}  // namespace llmcore::cuda
