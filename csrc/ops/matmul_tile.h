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
#elif defined(__AVX2__)  // 16, all in use: 12 sums, 2 columns, 1 row
inline constexpr int kStripRows = 6, kTileVectors = 2;
#else                    // 16, and products need one before they are added
inline constexpr int kStripRows = 4, kTileVectors = 2;
#endif

// Whole strips, and whole vectors of C's rows whichever way the tile lies in C.
static constexpr int least_common_multiple(int a, int b) {
  int multiple = a;
  while (multiple % b != 0) multiple += a;
  return multiple;
}
inline constexpr int kTileRows = least_common_multiple(kStripRows, kLanes);
inline constexpr int kTileStrips = kTileRows / kStripRows, kTileCols = kTileVectors * kLanes;

// One side of the product. Its items (rows or columns of the problem) are contiguous along k, or
// lie beside each other.
struct Operand {
  const float* data;
  int64_t stride;
  bool along_k;

  const float* at(int64_t item, int64_t k) const {
    return along_k ? data + item * stride + k : data + k * stride + item;
  }
};

// Memory that will be wanted next, brought near while a strip is multiplied: every 16 steps of k
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
  float *c,
      *sums;  // sums that are not complete wait in C, or in scratch where C is read at the end
  int64_t n;  // distance between rows of both
  const float *bias, *gate_input, *residual;
  float *pre_activation, *gate_output;
  Activation activation, gate_activation;
  Dropout dropout;
  bool accumulate;

  // There is something to do between bias and residual, or at all.
  bool changes() const {
    return activation != Activation::kNone || gate_input != nullptr || dropout.p > 0.0f;
  }
  bool epilogue() const {
    return bias != nullptr || pre_activation != nullptr || changes() || residual != nullptr;
  }
};

// C is the residual too, and its sums take more than one block of k.
LLMCORE_INLINE bool needs_own_sums(const MatmulArgs& args, int64_t depth) {
  return args.residual.data == args.c.data && depth > kMatmulBlock;
}

LLMCORE_INLINE Output make_output(const MatmulArgs& args, float* sums) {
  return {.c = args.c.f32(),
          .sums = sums,
          .n = args.c.dim(1),
          .bias = args.bias.f32(),
          .gate_input = args.gate_input.f32(),
          .residual = args.residual.f32(),
          .pre_activation = args.pre_activation.f32(),
          .gate_output = args.gate_output.f32(),
          .activation = args.activation,
          .gate_activation = args.gate_activation,
          .dropout = args.dropout,
          .accumulate = args.accumulate};
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

// What is done to a vector of each row between bias and residual, the first being C's elements from
// `first` on. Many instructions, so not in every tile; a loop for each activation keeps its
// constants in registers.
template <int kCols>
__attribute__((noinline)) static void change_rows(const Output& shared, int64_t first,
                                                  int64_t count, int64_t cols, Vec* rows) {
  const Output out = shared;  // a copy of its own: nothing stored below can change it
  with_fixed(out.activation, [&](auto fixed) {
    for (int64_t r = 0; r < count; ++r) rows[r] = activate(fixed.value, rows[r]).value;
  });
  const bool drops = out.dropout.p > 0.0f;
  if (out.gate_input == nullptr && !drops) return;
  const int64_t width = kCols > 0 ? kCols : cols;
  for (int64_t r = 0, i = first; r < count; ++r, i += out.n) {
    const Vec kept = drops ? dropout_factor(out.dropout, static_cast<uint64_t>(i)) : Vec{};
    if (out.gate_input != nullptr) {
      const auto [value, slope] =
          activate(out.gate_activation, load_up_to(out.gate_input + i, width));
      rows[r] *= slope;
      if (out.gate_output != nullptr)
        store_up_to(out.gate_output + i, drops ? value * kept : value, width);
    }
    if (drops) rows[r] *= kept;
  }
}

// Stores a vector of sums in each row of a place that is one vector wide: kRows rows of kCols
// elements, or as many as the place says where they are 0. One thing after the other is done to all
// rows, so that what there is to do is asked once a block.
template <int kRows, int kCols>
LLMCORE_INLINE void store_rows(const Output& shared, const Place& place, Vec* rows) {
  const Output out = shared;  // as above
  const int64_t count = kRows > 0 ? kRows : place.rows, cols = kCols > 0 ? kCols : place.cols;
  const int64_t first = place.m * out.n + place.n;
  const auto add = [&](const float* from) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < count; ++r) rows[r] += load_up_to(from + first + r * out.n, cols);
  };
  const auto save = [&](float* to) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < count; ++r) store_up_to(to + first + r * out.n, rows[r], cols);
  };

  if (place.add) add(out.sums);
  if (!place.last) return save(out.sums);
  if (out.epilogue()) {
    if (out.bias != nullptr) {
      const Vec bias = load_up_to(out.bias + place.n, cols);
#pragma GCC unroll 16
      for (int64_t r = 0; r < count; ++r) rows[r] += bias;
    }
    if (out.pre_activation != nullptr) save(out.pre_activation);
    if (out.changes()) {
      Vec copies[kLanes];
#pragma GCC unroll 16
      for (int64_t r = 0; r < count; ++r) copies[r] = rows[r];
      change_rows<kCols>(out, first, count, cols, copies);
#pragma GCC unroll 16
      for (int64_t r = 0; r < count; ++r) rows[r] = copies[r];
    }
    if (out.residual != nullptr) add(out.residual);
  }
  save(out.c);
}

// The tile's rows are C's, or its columns if kTransposed.
template <bool kTransposed>
static void store_tile(const Output& out, const Place& place, const float* tile) {
  for (int64_t i = 0; i < (kTransposed ? place.cols : place.rows); i += kLanes) {
    for (int64_t j = 0; j < (kTransposed ? place.rows : place.cols); j += kLanes) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load(tile + (i + r) * kTileCols + j);
      if constexpr (kTransposed) transpose(block);
      const int64_t row = kTransposed ? j : i, col = kTransposed ? i : j;
      Place part = place;
      part.m += row;
      part.n += col;
      part.rows = place.rows - row < kLanes ? place.rows - row : kLanes;
      part.cols = place.cols - col < kLanes ? place.cols - col : kLanes;
      if (part.rows == kLanes && part.cols == kLanes)
        store_rows<kLanes, kLanes>(out, part, block);
      else
        store_rows<0, 0>(out, part, block);
    }
  }
}

}  // namespace llmcore::LLMCORE_ISA
