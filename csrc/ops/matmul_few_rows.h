// y = x W^T for a few rows of x, as when text is generated: W is read once, at the speed of memory.
//
// kLanes rows of W at a time are transposed in registers, so that a lane is an element of y and its
// sum has the order every path keeps. Copies of W or x would cost more than they save.
#pragma once

#include "ops/matmul_tile.h"

namespace llmcore::LLMCORE_ISA {

inline constexpr int64_t kFewRows = 8;

struct FewRows {
  const float *x, *w;  // [M, K], [N, K]
  int64_t m, n, k;
  const Output& out;
};

// y[:, row .. row + kLanes), kRows rows of x at once, the last one repeated where x has fewer.
template <int kRows>
__attribute__((noinline)) static void few_rows_strip(const FewRows& p, int64_t row) {
  const float* x[kRows];
  for (int m = 0; m < kRows; ++m) x[m] = p.x + (m < p.m ? m : p.m - 1) * p.k;
  const int64_t valid = p.n - row < kLanes ? p.n - row : kLanes;
  const float* w = p.w + row * p.k;
  const float* next = w + kLanes * p.k;  // the rows after these, one line after the other

  const bool accumulate = p.out.accumulate;
  Vec total[kRows] = {}, block[kRows] = {}, sum[kRows];
  if (accumulate)
    for (int m = 0; m < kRows && m < p.m; ++m)
      total[m] = load_up_to(p.out.c + m * p.out.n + row, valid);
  for (int64_t begin = 0; begin < p.k; begin += kMatmulBlock) {
    const int64_t block_end = begin + kMatmulBlock < p.k ? begin + kMatmulBlock : p.k;
    for (int64_t chain = begin; chain < block_end; chain += kMatmulChain) {
      const int64_t end = chain + kMatmulChain < block_end ? chain + kMatmulChain : block_end;
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) sum[m] = Vec{};
      for (int64_t k = chain; k < end; k += kLanes) {
        Vec lane[kLanes];
        if (end - k >= kLanes && valid == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            lane[i] = load(w + i * p.k + k);
            if (i % (kCacheLine / kLanes) == 0) __builtin_prefetch(next + k * kLanes + i * kLanes);
          }
        } else {
          for (int64_t i = 0; i < kLanes; ++i)
            lane[i] = i < valid ? load_up_to(w + i * p.k + k, end - k) : Vec{};
        }
        transpose(lane);
        if (end - k >= kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i)
#pragma GCC unroll 8
            for (int m = 0; m < kRows; ++m) sum[m] = fma(lane[i], broadcast(x[m][k + i]), sum[m]);
        } else {
          for (int64_t i = 0; i < end - k; ++i)
            for (int m = 0; m < kRows; ++m) sum[m] = fma(lane[i], broadcast(x[m][k + i]), sum[m]);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) block[m] = chain == begin ? sum[m] : block[m] + sum[m];
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
      total[m] = begin == 0 && !accumulate ? block[m] : total[m] + block[m];
  }
  for (int m = 0; m < kRows && m < p.m; ++m) {
    const Place place{.m = m, .n = row, .rows = 1, .cols = valid, .add = false, .last = true};
    store_rows<0, 0>(p.out, place, &total[m]);
  }
}

// Columns [begin, end) of y.
static void few_rows(const FewRows& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kLanes) {
    if (p.m == 1)
      few_rows_strip<1>(p, row);
    else if (p.m == 2)
      few_rows_strip<2>(p, row);
    else if (p.m <= 4)
      few_rows_strip<4>(p, row);
    else
      few_rows_strip<8>(p, row);
  }
}

}  // namespace llmcore::LLMCORE_ISA
