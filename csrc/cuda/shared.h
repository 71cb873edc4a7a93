// Dynamic shared memory; tests/emulation/cuda/shared.h is its counterpart on the CPU.
#pragma once

#include <cuda_runtime.h>

namespace llmcore::cuda {

// What launch() was asked for, 128-byte aligned: one array, whatever T is.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace llmcore::cuda
