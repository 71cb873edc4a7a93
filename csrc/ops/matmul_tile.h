// The tile of a matrix product: the multiply-adds on registers, and the way of the sums into C.
//
// A tile is kTileRows x kTileCols elements. Of its two operands one gives scalars, kStripRows rows
// at a time, each contiguous along k; the other gives vectors, from a panel that is contiguous
// along the columns. The strip's sums fill the registers: kStripRows x kTileVectors of them.
#pragma once

#include "ops/activation_simd.h"
#include "ops/matmul.h"
#include "simd/loop.h"
#include "simd/philox.h"
#include "simd/transpose.h"

namespace llmcore::LLMCORE_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
inline constexpr int kStripRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)  // 16, all in use: 12 sums, 3 columns, 1 row
inline constexpr int kStripRows = 4, kTileVectors = 3;
#else                    // 16, and products need one before they are added
inline constexpr int kStripRows = 4, kTileVectors = 2;
#endif

// Whole vectors of C's rows, whichever way the tile lies in C.
inline constexpr int kTileRows = kStripRows > kLanes ? kStripRows : kLanes;
inline constexpr int kTileCols = kTileVectors * kLanes;
static_assert(kTileRows % kStripRows == 0 && kTileRows % kLanes == 0);

// Memory that will be wanted next, brought near while a tile is computed: every 16 steps of k
// `count` cache lines `stride` apart, then all of them move on by `step`.
struct Ahead {
  const float* data = nullptr;
  int64_t stride = 0, step = 0, count = 0;
};
inline constexpr int64_t kCacheLine = 64 / sizeof(float);

// tile[r][c] = sum over k < depth of rows[r][k] * panel[k][c], in chains of kMatmulChain.
template <int kVectors>
__attribute__((noinline)) static void multiply(const float* rows, int64_t row_stride,
                                               const float* panel, int64_t panel_stride,
                                               int64_t depth, const Ahead& ahead, float* tile) {
  const float* next = ahead.data;
  for (int64_t chain = 0; chain == 0 || chain < depth; chain += kMatmulChain) {
    Vec sum[kStripRows][kVectors] = {};
    const int64_t chain_end = chain + kMatmulChain < depth ? chain + kMatmulChain : depth;
    for (int64_t line = chain; line < chain_end; line += kCacheLine) {
      for (int64_t i = 0; i < ahead.count; ++i) __builtin_prefetch(next + i * ahead.stride, 0, 2);
      next += ahead.step;
      const int64_t line_end = line + kCacheLine < chain_end ? line + kCacheLine : chain_end;
      for (int64_t k = line; k < line_end; ++k) {
        Vec columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kStripRows; ++r) {
          const Vec row = broadcast(rows[r * row_stride + k]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(row, columns[v], sum[r][v]);
        }
        panel += panel_stride;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kStripRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* to = tile + r * kTileCols + v * kLanes;
        store(to, chain == 0 ? sum[r][v] : load(to) + sum[r][v]);
      }
    }
  }
}

// Where sums go: C, and what is done to them on the way when they are complete.
struct Output {
  const MatmulArgs& args;
  float *c,
      *sums;      // sums that are not complete wait in C, or in scratch where C is read at the end
  int64_t n;      // distance between rows of both
  bool epilogue;  // there is something to do
};

// C is the residual too, and its sums take more than one block of k.
LLMCORE_INLINE bool needs_own_sums(const MatmulArgs& args, int64_t depth) {
  return args.residual.data == args.c.data && depth > kMatmulBlock;
}

LLMCORE_INLINE Output make_output(const MatmulArgs& args, float* sums) {
  return {args, args.c.f32(), sums, args.c.dim(1),
          args.bias || args.pre_activation || args.activation != Activation::kNone ||
              args.gate_input || args.dropout.p > 0.0f || args.residual};
}

// What becomes of elements [n, n + count) of row m of C when their sum is complete.
LLMCORE_INLINE Vec finished(const Output& out, int64_t m, int64_t n, int64_t count, Vec v) {
  const MatmulArgs& args = out.args;
  const int64_t i = m * out.n + n;
  if (args.bias) v += load_up_to(args.bias.f32() + n, count);
  if (args.pre_activation) store_up_to(args.pre_activation.f32() + i, v, count);
  v = activate(args.activation, v);
  if (args.gate_input)
    v *= activate_derivative(args.gate_activation, load_up_to(args.gate_input.f32() + i, count));
  if (args.dropout.p > 0.0f) v *= dropout_factor(args.dropout, static_cast<uint64_t>(i));
  if (args.residual) v += load_up_to(args.residual.f32() + i, count);
  return v;
}

// A part of C and which part of its sum over K is to be stored there.
struct Place {
  int64_t m, n;        // of the first element
  int64_t rows, cols;  // of C
  bool add;            // to what C holds
  bool last;           // the sum is complete
};

// Brings a place near while its sums are computed.
LLMCORE_INLINE void prefetch(const Output& out, const Place& place) {
  for (int64_t r = 0; r < place.rows; ++r)
    for (int64_t c = 0; c < place.cols; c += kCacheLine)
      __builtin_prefetch((place.last ? out.c : out.sums) + (place.m + r) * out.n + place.n + c, 1,
                         3);
}

// Stores vectors of sums, each a part of one of C's rows: row(r, c) has those of row r from column
// c.
template <class Row>
LLMCORE_INLINE void store_sums(const Output& out, const Place& place, Row row) {
  const int64_t first = place.m * out.n + place.n;
  const float* sums = out.sums + first;
  float* c = (place.last ? out.c : out.sums) + first;
  if (place.cols % kLanes != 0 || (place.last && out.epilogue)) {
    for (int64_t r = 0; r < place.rows; ++r, c += out.n, sums += out.n) {
      for (int64_t i = 0; i < place.cols; i += kLanes) {
        const int64_t count = place.cols - i;
        Vec v = row(r, i);
        if (place.add) v += load_up_to(sums + i, count);
        if (place.last && out.epilogue) v = finished(out, place.m + r, place.n + i, count, v);
        store_up_to(c + i, v, count);
      }
    }
  } else if (place.add) {
    for (int64_t r = 0; r < place.rows; ++r, c += out.n, sums += out.n) {
      for (int64_t i = 0; i < place.cols; i += kLanes) store(c + i, load(sums + i) + row(r, i));
    }
  } else {
    for (int64_t r = 0; r < place.rows; ++r, c += out.n, sums += out.n) {
      for (int64_t i = 0; i < place.cols; i += kLanes) store(c + i, row(r, i));
    }
  }
}

// The tile's rows are C's.
static void store_tile(const Output& out, const Place& place, const float* tile) {
  store_sums(out, place, [&](int64_t r, int64_t c) { return load(tile + r * kTileCols + c); });
}

// The tile's rows are C's columns.
static void store_transposed_tile(const Output& out, const Place& place, const float* tile) {
  for (int64_t i = 0; i < place.cols; i += kLanes) {
    for (int64_t j = 0; j < place.rows; j += kLanes) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load(tile + (i + r) * kTileCols + j);
      transpose(block);
      const Place part{.m = place.m + j,
                       .n = place.n + i,
                       .rows = place.rows - j < kLanes ? place.rows - j : kLanes,
                       .cols = place.cols - i < kLanes ? place.cols - i : kLanes,
                       .add = place.add,
                       .last = place.last};
      store_sums(out, part, [&](int64_t r, int64_t) { return block[r]; });
    }
  }
}

}  // namespace llmcore::LLMCORE_ISA
