// Matrices row by row: a grid over all their parts, and one row spread over a block.
#pragma once

#include <algorithm>

#include "cuda/floats.h"
#include "cuda/launch.h"

namespace llmcore::cuda {

// A thread's part of a matrix: one of the `parts` of a row, a pack of elements for example.
struct RowPart {
  int64_t row, part;
};
__device__ __forceinline__ RowPart row_part(int64_t parts) {
  const auto across = static_cast<uint32_t>(blocks_of(parts, blockDim.x));
  const uint32_t down = blockIdx.x / across;
  return {int64_t{down} * blockDim.y + threadIdx.y,
          int64_t{blockIdx.x - down * across} * blockDim.x + threadIdx.x};
}

// One thread for each part of each row: kernels compute row_part() and compare it with the counts.
template <class... Parameters, class... Args>
void launch_rows(const Context& context, void (*kernel)(Parameters...), int64_t rows, int64_t parts,
                 Args&&... args) {
  constexpr unsigned kThreads = 128;
  unsigned across = 1;
  while (across < parts && across < kWarp) across *= 2;
  const dim3 block(across, kThreads / across);
  const int64_t blocks = blocks_of(parts, block.x) * blocks_of(rows, block.y);
  launch(context, kernel, dim3(static_cast<unsigned>(blocks)), block, 0,
         std::forward<Args>(args)...);
}

// Threads for a block to take a row of `width` elements of T in, kPack<T> each at a step.
template <class T>
unsigned row_threads(int64_t width, int64_t most) {
  return static_cast<unsigned>(std::min(most, blocks_of(width, kPack<T> * kWarp) * kWarp));
}
template <class T>
__device__ __forceinline__ int64_t row_steps(int64_t width) {
  return blocks_of(width, int64_t{kPack<T>} * blockDim.x);
}

// The column of element i of this thread's pack at a step. Where rows are whole packs, maybe with
// some columns more than `width`, they are neighbours; otherwise neighbouring threads have
// neighbouring ones.
template <class T, bool kAligned>
__device__ __forceinline__ int64_t row_column(int64_t step, int i) {
  const int64_t pack = step * blockDim.x;
  return kAligned ? (pack + threadIdx.x) * kPack<T> + i
                  : pack * kPack<T> + int64_t{blockDim.x} * i + threadIdx.x;
}
template <class T, bool kAligned>
__device__ __forceinline__ void load_step(const T* row, int64_t width, int64_t step,
                                          float otherwise, float (&x)[kPack<T>]) {
  if constexpr (kAligned) {
    const int64_t column = row_column<T, true>(step, 0);
    if (column < width) load_pack(row + column, x);
    if (column + kPack<T> <= width) return;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i)
      if (column + i >= width) x[i] = otherwise;
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const int64_t column = row_column<T, false>(step, i);
      x[i] = column < width ? as_float(row[column]) : otherwise;
    }
  }
}
template <class T, bool kAligned>
__device__ __forceinline__ void store_step(T* row, int64_t width, int64_t step,
                                           const float (&x)[kPack<T>]) {
  if constexpr (kAligned) {
    const int64_t column = row_column<T, true>(step, 0);
    if (column < width) store_pack(row + column, x);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const int64_t column = row_column<T, false>(step, i);
      if (column < width) row[column] = from_float<T>(x[i]);
    }
  }
}

}  // namespace llmcore::cuda
