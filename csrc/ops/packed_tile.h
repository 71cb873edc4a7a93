// Tiles of y = x W^T for packed weights: some rows of x times some panels, sums in registers.
#pragma once

#include "ops/matmul_tile.h"
#include "ops/packed.h"
#include "simd/dot.h"
#include "simd/int8.h"

namespace llmcore::LLMCORE_ISA {

// Panels that stay in the second-level cache while strips of x pass by; and into how many tasks a
// product is cut.
inline constexpr int64_t kGroupBytes = 256 << 10, kTasksPerThread = 4;

// Vectors of a panel's outputs, and rows of x whose sums fill the registers. Fewer rows are bound
// by reading: one panel at a time is one stream of memory. How many panels lie side by side where
// the arithmetic needs more chains (measured, benchmarks/README.md) is the format's panels(rows).
inline constexpr int kPanelVectors = kPanelOutputs / kLanes;
#if defined(__AVX512F__)
inline constexpr int kMostRows = 14;
#elif defined(__aarch64__)
inline constexpr int kMostRows = 4;
#elif defined(__AVX2__)
inline constexpr int kMostRows = 4;
#else
inline constexpr int kMostRows = 2;
#endif

// kRows rows of x side by side: words[w * kRows + r] is word w of row r.
struct Strip {
  DotWord* words;
  int32_t* starts;  // what the integer sums of [group][row] start from: weights are stored unsigned
  float* scales;    // of the rows
};

LLMCORE_INLINE VecU load_words(const uint32_t* p) {
  VecU v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
LLMCORE_INLINE VecI broadcast_sum(int32_t x) {
  return x - VecI{};
}

// Memory that will be wanted next, brought near while tiles are multiplied: rows of cache lines,
// one line after every so many words. All at once they would be waited for.
struct Upcoming {
  static constexpr int64_t kNever = int64_t{1} << 62;
  const float* row = nullptr;
  int64_t stride = 0, rows = 0, lines = 0, every = kNever;
  int64_t line = 0;  // of the row

  LLMCORE_INLINE void bring_line() {
    if (rows == 0) return;
    __builtin_prefetch(row + line * kCacheLine, 0, 2);
    if (++line < lines) return;
    line = 0;
    row += stride;
    --rows;
  }
};

// Of kRows rows and kPanels panels of `words` words for each output: sum[r][v] gains the products.
template <class Format, int kRows, int kPanels>
LLMCORE_INLINE static void add_products(
    const DotWord* x, const uint32_t* panel, int64_t panel_words, int64_t words, Upcoming& upcoming,
    typename Format::Sum (&sum)[kRows][kPanels * kPanelVectors]) {
  for (int64_t w = 0; w < words;) {
    upcoming.bring_line();
    for (const int64_t end = upcoming.every < words - w ? w + upcoming.every : words; w < end;
         ++w, x += kRows) {
      DotLanes lanes[kPanels * kPanelVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kPanels * kPanelVectors; ++v)
        lanes[v] = Format::lanes(load_words(panel + v / kPanelVectors * panel_words +
                                            w * kPanelOutputs + v % kPanelVectors * kLanes));
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) {
        const DotLanes row = broadcast(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kPanels * kPanelVectors; ++v)
          sum[r][v] = Format::dot(sum[r][v], lanes[v], row);
      }
    }
  }
}

struct BFloat16Format {
  using Sum = Vec;
  static constexpr DType kDType = DType::kPackedBFloat16;
  static constexpr int kRows = kMostRows;
  static constexpr int panels(int rows) { return kLanes < 16 || rows < 8 ? 1 : rows == 8 ? 3 : 2; }
  LLMCORE_INLINE static DotLanes lanes(VecU w) { return bfloat16_lanes(w); }
  LLMCORE_INLINE static Vec dot(Vec sum, const DotLanes& w, const DotLanes& x) {
    return dot_bfloat16(sum, w, x);
  }

  template <int kRows, int kPanels>
  LLMCORE_INLINE static void tile(const Strip& strip, const uint32_t* panel, int64_t panel_words,
                                  int64_t depth, Upcoming& upcoming,
                                  Vec (&out)[kPanels * kPanelVectors][kRows]) {
    Vec sum[kRows][kPanels * kPanelVectors] = {};
    add_products<BFloat16Format, kRows, kPanels>(strip.words, panel, panel_words, (depth + 1) / 2,
                                                 upcoming, sum);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kPanels * kPanelVectors; ++v) out[v][r] = sum[r][v];
  }
};

struct Int8Format {
  using Sum = VecI;
  static constexpr DType kDType = DType::kPackedInt8;
  static constexpr int kRows = kMostRows;
  static constexpr int panels(int rows) { return kLanes < 16 || rows < kRows ? 1 : 2; }
  LLMCORE_INLINE static DotLanes lanes(VecU w) { return int8_lanes(w); }
  LLMCORE_INLINE static VecI dot(VecI sum, const DotLanes& w, const DotLanes& x) {
    return dot_int8(sum, w, x);
  }

  template <int kRows, int kPanels>
  LLMCORE_INLINE static void tile(const Strip& strip, const uint32_t* panel, int64_t panel_words,
                                  int64_t depth, Upcoming& upcoming,
                                  Vec (&out)[kPanels * kPanelVectors][kRows]) {
    VecI sum[kRows][kPanels * kPanelVectors];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kPanels * kPanelVectors; ++v) sum[r][v] = broadcast_sum(strip.starts[r]);
    const int64_t words = (depth + 3) / 4;
    add_products<Int8Format, kRows, kPanels>(strip.words, panel, panel_words, words, upcoming, sum);
#pragma GCC unroll 4
    for (int v = 0; v < kPanels * kPanelVectors; ++v) {
      const Vec scale = as_floats(load_words(panel + v / kPanelVectors * panel_words +
                                             words * kPanelOutputs + v % kPanelVectors * kLanes));
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) out[v][r] = to_float(sum[r][v]) * scale * strip.scales[r];
    }
  }
};

struct Int4Format {
  static constexpr DType kDType = DType::kPackedInt4;
  static constexpr int kRows = kMostRows / (kLanes == 16 ? 1 : 2);
  static constexpr int panels(int) { return 1; }

  template <int kRows, int kPanels>
  LLMCORE_INLINE static void tile(const Strip& strip, const uint32_t* panel, int64_t, int64_t depth,
                                  Upcoming&, Vec (&out)[kPanels * kPanelVectors][kRows]) {
    static_assert(kPanels == 1);
    Vec total[kRows][kPanelVectors] = {};
    const DotWord* x = strip.words;
    const int32_t* starts = strip.starts;
    for (int64_t k = 0; k < depth; k += 2 * kInt4Group, panel += 9 * kPanelOutputs) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, x += 8 * kRows, starts += kRows) {
        VecI sum[kRows][kPanelVectors];
#pragma GCC unroll 14
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = broadcast_sum(starts[r]);
#pragma GCC unroll 4
        for (int line = 0; line < 4; ++line) {
#pragma GCC unroll 4
          for (int v = 0; v < kPanelVectors; ++v) {
            const VecU bytes = load_words(panel + (4 * half + line) * kPanelOutputs + v * kLanes);
            const DotLanes low = int8_lanes(bytes & 0x0f0f0f0fu);
            const DotLanes high = int8_lanes((bytes >> 4) & 0x0f0f0f0fu);
#pragma GCC unroll 14
            for (int r = 0; r < kRows; ++r) {
              sum[r][v] = dot_int8(sum[r][v], low, broadcast(x[2 * line * kRows + r]));
              sum[r][v] = dot_int8(sum[r][v], high, broadcast(x[(2 * line + 1) * kRows + r]));
            }
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) {
          const VecU both = load_words(panel + 8 * kPanelOutputs + v * kLanes);
          const Vec scale = as_floats(half == 0 ? both << 16 : both & 0xffff0000u);
#pragma GCC unroll 14
          for (int r = 0; r < kRows; ++r)
            total[r][v] = fma(to_float(sum[r][v]), scale, total[r][v]);
        }
      }
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) out[v][r] = total[r][v] * strip.scales[r];
  }
};

namespace {  // no symbol of a template compiled for one instruction set may serve another

// The tiles of rows of x, a strip at a time, times panels: into C, with what follows the product.
template <class Format>
struct Tiles {
  const Output& out;
  int64_t rows, outputs, depth, panel_words;
  bool add = false, last = true;  // to what C holds; the sum is complete

  // Rows of a strip, of which there is a tile for 1, 2, 4, 8 and the most.
  static int64_t tile_rows(int64_t rows) {
    int64_t count = 1;
    while (count < rows) count *= 2;
    return min(count, Format::kRows);
  }

  template <int kRows, int kPanels>
  __attribute__((noinline)) void tile(const Strip& strip, int64_t row, const uint32_t* panel,
                                      int64_t first_col, Upcoming& upcoming) const {
    const auto place_of = [&](int64_t v) {
      const int64_t col = first_col + v * kLanes;
      return Place{.m = row,
                   .n = col,
                   .rows = min(kRows, rows - row),
                   .cols = min(kLanes, outputs - col),
                   .add = add,
                   .last = last};
    };
    for (int64_t v = 0; v < kPanels * kPanelVectors; ++v) prefetch(out, place_of(v));
    Vec sums[kPanels * kPanelVectors][kRows];
    Upcoming next = upcoming;  // in registers
    Format::template tile<kRows, kPanels>(strip, panel, panel_words, depth, next, sums);
    upcoming = next;
    for (int64_t v = 0; v < kPanels * kPanelVectors; ++v) {
      const Place place = place_of(v);
      if (place.cols == kLanes)
        store_rows<0, kLanes>(out, place, sums[v]);
      else if (place.cols > 0)
        store_rows<0, 0>(out, place, sums[v]);
    }
  }

  template <int kRows>
  void multiply(const Strip& strip, int64_t row, const uint32_t* panel, int64_t count, int64_t col,
                Upcoming& upcoming) const {
    constexpr int kPanels = Format::panels(kRows);
    int64_t i = 0;
    for (; i + kPanels <= count; i += kPanels)
      tile<kRows, kPanels>(strip, row, panel + i * panel_words, col + i * kPanelOutputs, upcoming);
    for (; i < count; ++i)
      tile<kRows, 1>(strip, row, panel + i * panel_words, col + i * kPanelOutputs, upcoming);
  }

  // The strip of the rows from `row` on times `count` panels, the first of which has output `col`.
  void multiply(const Strip& strip, int64_t row, const uint32_t* panel, int64_t count, int64_t col,
                Upcoming&& upcoming = {}) const {
    multiply(strip, row, panel, count, col, upcoming);
  }
  void multiply(const Strip& strip, int64_t row, const uint32_t* panel, int64_t count, int64_t col,
                Upcoming& upcoming) const {
    const int64_t height = tile_rows(rows - row);
    if (height == Format::kRows)
      multiply<Format::kRows>(strip, row, panel, count, col, upcoming);
    else if (height == 8)
      multiply<min(8, Format::kRows)>(strip, row, panel, count, col, upcoming);
    else if (height == 4)
      multiply<min(4, Format::kRows)>(strip, row, panel, count, col, upcoming);
    else if (height == 2)
      multiply<min(2, Format::kRows)>(strip, row, panel, count, col, upcoming);
    else
      multiply<1>(strip, row, panel, count, col, upcoming);
  }
};

}  // namespace

}  // namespace llmcore::LLMCORE_ISA
