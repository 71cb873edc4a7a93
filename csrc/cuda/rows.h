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

// visit(step, whole): each step of a row, whole being std::true_type where none of the block's
// elements lies beyond its end, as std::false_type the last one's may.
template <class T, class Visit>
__device__ __forceinline__ void each_step(int64_t width, Visit visit) {
  const int of_block = kPack<T> * static_cast<int>(blockDim.x);
  const int whole = static_cast<int>(width / of_block);
#pragma unroll 4
  for (int step = 0; step < whole; ++step) visit(step, std::true_type{});
  if (int64_t{whole} * of_block < width) visit(whole, std::false_type{});
}

// The column of element i of this thread's pack at a step. Where rows are whole packs, maybe with
// some columns more than `width`, they are neighbours; otherwise neighbouring threads have
// neighbouring ones.
template <class T, bool kAligned>
__device__ __forceinline__ int64_t row_column(int step, int i) {
  const int64_t pack = int64_t{step} * blockDim.x;
  return kAligned ? (pack + threadIdx.x) * kPack<T> + i
                  : pack * kPack<T> + int64_t{blockDim.x} * i + threadIdx.x;
}
template <class T, bool kAligned, bool kWhole>
__device__ __forceinline__ uint4 load_step(const T* row, int64_t width, int step,
                                           std::bool_constant<kWhole>, float otherwise) {
  if constexpr (kAligned) {
    const int64_t column = row_column<T, true>(step, 0);
    return load_bytes(row + column, kWhole ? kPack<T> : width - column, true, otherwise);
  } else {
    float x[kPack<T>];
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const int64_t column = row_column<T, false>(step, i);
      x[i] = kWhole || column < width ? as_float(row[column]) : otherwise;
    }
    return close_pack<T>(x);
  }
}
template <class T, bool kAligned, bool kWhole>
__device__ __forceinline__ void store_step(T* row, int64_t width, int step,
                                           std::bool_constant<kWhole>, const float (&x)[kPack<T>]) {
  if constexpr (kAligned) {
    const int64_t column = row_column<T, true>(step, 0);
    if (kWhole || column < width) store_pack(row + column, x);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const int64_t column = row_column<T, false>(step, i);
      if (kWhole || column < width) row[column] = from_float<T>(x[i]);
    }
  }
}

}  // namespace llmcore::cuda
