// Sums, running sums and maxima over warps and blocks, in a fixed order: the same bits every time.
#pragma once

#include <cuda_runtime.h>

namespace llmcore::cuda {

// Over the lanes of a warp, all of which take part and get the result.
template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T x, Combine combine) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce(x, [](T a, T b) { return a + b; });
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  return warp_reduce(x, [](T a, T b) { return a > b ? a : b; });
}

// The sum of this lane and those before it.
template <class T>
__device__ __forceinline__ T warp_scan(T x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T before = __shfl_up_sync(0xffffffffu, x, distance);
    if (lane >= distance) x += before;
  }
  return x;
}

// Over a block of whole warps; `shared` [32] is free again when the call returns. All get the
// result.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T x, T* shared, T neutral, Combine combine) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  x = warp_reduce(x, combine);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_reduce(lane < warps ? shared[lane] : neutral, combine);
  __syncthreads();
  return x;
}
template <class T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
  return block_reduce(x, shared, T{}, [](T a, T b) { return a + b; });
}
__device__ __forceinline__ float block_max(float x, float* shared) {
  return block_reduce(x, shared, -INFINITY, [](float a, float b) { return a > b ? a : b; });
}

// The sum of the threads before this one; `total` becomes that of all.
template <class T>
__device__ __forceinline__ T block_scan(T x, T* shared, T& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const T through = warp_scan(x);
  if (lane == 31) shared[warp] = through;
  __syncthreads();
  const T of_warps = warp_scan(lane < warps ? shared[lane] : T{});
  total = __shfl_sync(0xffffffffu, of_warps, 31);
  const T before = __shfl_sync(0xffffffffu, of_warps, warp == 0 ? 0 : warp - 1);
  __syncthreads();
  return through - x + (warp == 0 ? T{} : before);
}

}  // namespace llmcore::cuda
