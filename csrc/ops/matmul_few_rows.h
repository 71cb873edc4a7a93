// y = x W^T for a few rows of x, as when text is generated: W is read once, at the speed of memory.
//
// kLanes rows of W at a time are transposed in registers, so that a lane is an element of y and its
// sum has the order every path keeps. A copy of W would cost more than it saves.
#pragma once

#include "ops/matmul_tile.h"

namespace llmcore::LLMCORE_ISA {

inline constexpr int kFewRows = 8;

// Floats between what x has at one k and at the next, where its rows lie beside each other.
static constexpr int64_t few_rows_stride(int64_t rows) {
  return rows <= kLanes ? rows : (rows + kLanes - 1) / kLanes * kLanes;
}

struct FewRows {
  const float *x, *w;  // [K, few_rows_stride(M)], [N, K]
  int64_t m, n, k;
  const Output& out;
};

// A chain of kRows rows of y: sum[m] = sum over k < depth of x[k][m] * w[lane][k], where `valid` of
// the lanes have a row of W. What follows at `next`, line after line, is brought into the second
// level of the cache: for the first, the rows ahead would be too many.
template <int kRows>
__attribute__((noinline)) static void few_rows_chain(const float* x, const float* w, int64_t stride,
                                                     int64_t valid, int64_t depth,
                                                     const float* next, Vec* sums) {
  constexpr int64_t kStride = few_rows_stride(kRows);
  Vec sum[kRows] = {};
  const int64_t whole = valid == kLanes ? depth / kLanes : 0;
#pragma GCC unroll 1
  for (int64_t step = 0; step < whole; ++step) {
    Vec lane[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      lane[i] = load(w + i * stride);
      if (i % (kCacheLine / kLanes) == 0) __builtin_prefetch(next + i * kLanes, 0, 2);
    }
    transpose(lane);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) sum[m] = fma(lane[i], broadcast(x[i * kStride + m]), sum[m]);
    x += kLanes * kStride;
    w += kLanes;
    next += kLanes * kLanes;
  }
  for (int64_t rest = depth - whole * kLanes; rest > 0; rest -= kLanes, w += kLanes) {
    Vec lane[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      lane[i] = i < valid ? load_up_to(w + i * stride, rest) : Vec{};
    transpose(lane);
    for (int64_t i = 0; i < kLanes && i < rest; ++i, x += kStride)
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) sum[m] = fma(lane[i], broadcast(x[m]), sum[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) sums[m] = sum[m];
}

// y[:, row .. row + kLanes)
static void few_rows_strip(const FewRows& p, int64_t row) {
  constexpr decltype(&few_rows_chain<1>) kChains[kFewRows] = {
      few_rows_chain<1>, few_rows_chain<2>, few_rows_chain<3>, few_rows_chain<4>,
      few_rows_chain<5>, few_rows_chain<6>, few_rows_chain<7>, few_rows_chain<8>};
  const int64_t valid = p.n - row < kLanes ? p.n - row : kLanes;
  const float* w = p.w + row * p.k;
  const float* next = w + kLanes * p.k;

  const bool accumulate = p.out.accumulate;
  Vec total[kFewRows] = {}, block[kFewRows] = {}, sum[kFewRows];
  if (accumulate)
    for (int64_t m = 0; m < p.m; ++m) total[m] = load_up_to(p.out.c + m * p.out.n + row, valid);
  for (int64_t begin = 0; begin < p.k; begin += kMatmulBlock) {
    const int64_t block_end = begin + kMatmulBlock < p.k ? begin + kMatmulBlock : p.k;
    for (int64_t chain = begin; chain < block_end; chain += kMatmulChain) {
      const int64_t depth = block_end - chain < kMatmulChain ? block_end - chain : kMatmulChain;
      kChains[p.m - 1](p.x + chain * few_rows_stride(p.m), w + chain, p.k, valid, depth,
                       next + chain * kLanes, sum);
      for (int64_t m = 0; m < p.m; ++m) block[m] = chain == begin ? sum[m] : block[m] + sum[m];
    }
    for (int64_t m = 0; m < p.m; ++m)
      total[m] = begin == 0 && !accumulate ? block[m] : total[m] + block[m];
  }
  for (int64_t m = 0; m < p.m; ++m) {
    const Place place{.m = m, .n = row, .rows = 1, .cols = valid, .add = false, .last = true};
    store_rows<0, 0>(p.out, place, &total[m]);
  }
}

// Columns [begin, end) of y.
static void few_rows(const FewRows& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kLanes) few_rows_strip(p, row);
}

}  // namespace llmcore::LLMCORE_ISA
