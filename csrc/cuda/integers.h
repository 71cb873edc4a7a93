// Integers that all threads of a block add to: the only atomics there are. A sum of integers is the
// same in every order.
#pragma once

#include <cuda_runtime.h>

namespace llmcore::cuda {

__device__ __forceinline__ void add_to(unsigned* sum, unsigned x) {
  atomicAdd(sum, x);
}
__device__ __forceinline__ void add_to(unsigned long long* sum, unsigned long long x) {
  atomicAdd(sum, x);
}

// A number that no other thread gets. Which one depends on the order of threads: what is done with
// it must not.
__device__ __forceinline__ unsigned take_number(unsigned* next) {
  return atomicAdd(next, 1u);
}

}  // namespace llmcore::cuda
