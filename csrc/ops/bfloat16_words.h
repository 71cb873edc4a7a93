// Matrices of float as words of two bfloat16, the words of some rows (or columns) side by side:
// what the tiles of packed_tile.h read.
#pragma once

#include "ops/packed_tile.h"
#include "simd/transpose.h"

namespace llmcore::LLMCORE_ISA {

// One vector of words: a panel keeps them as they are, a strip ready to be multiplied.
LLMCORE_INLINE void put_words(uint32_t* to, VecU words) {
  __builtin_memcpy(to, &words, sizeof(words));
}
LLMCORE_INLINE void put_words(DotWord* to, VecU words) {
  store_words(to, bfloat16_lanes(words));
}

// How far ahead of what is copied memory is brought near: steps of k, or floats of a row.
inline constexpr int64_t kStepsAhead = 32, kFloatsAhead = 128;

// to[w * width + i] holds elements k + 2 w and k + 2 w + 1 of item `item + i` of `side`, zero
// beyond the last k. Whole vectors are written: up to kLanes - 1 words after the last. Of the items
// from `item` on `items` are wanted, and `there` may be read; what words of others hold does not
// matter, but is finite where theirs are.
template <class Word>
static void copy_bfloat16(const Operand& side, int64_t item, int64_t items, int64_t there,
                          int64_t k, int64_t depth, Word* to, int64_t width) {
  for (int64_t w = 0; w < ceil_div(depth, 2); w += kLanes) {
    const int64_t left = depth - 2 * w, words = min(ceil_div(left, 2), kLanes);
    for (int64_t i = 0; i < width; i += kLanes) {
      // Ascending, so that what is written beyond an item's place is overwritten by the next.
      const auto put = [&](int64_t r, VecU lanes) { put_words(to + (w + r) * width + i, lanes); };
      if (side.along_k) {
        Vec block[kLanes] = {};
        const auto read = [&](int64_t rows, auto vector) {
#pragma GCC unroll 16
          for (int64_t r = 0; r < rows; ++r) {
            const float* from = side.at(item + i + r, k + 2 * w);
            __builtin_prefetch(from + kFloatsAhead);
            __builtin_prefetch(from + kFloatsAhead + kLanes);
            block[r] =
                as_floats(bfloat16_pairs(vector(from, left), vector(from + kLanes, left - kLanes)));
          }
        };
        const int64_t rows = min(items - i, kLanes);
        if (left >= 2 * kLanes)
          read(rows, [](const float* p, int64_t) { return load(p); });
        else
          read(rows, [](const float* p, int64_t count) { return load_up_to(p, max(count, 0)); });
        transpose(block);
        for (int64_t r = 0; r < words; ++r) put(r, as_bits(block[r]));
      } else {
        const auto zip = [&](auto vector) {
          for (int64_t r = 0; r < words; ++r) {
            const float* from = side.at(item + i, k + 2 * (w + r));
            __builtin_prefetch(from + kStepsAhead * side.stride);
            __builtin_prefetch(from + (kStepsAhead + 1) * side.stride);
            const bool both = 2 * (w + r) + 1 < depth;
            put(r, bfloat16_zip(vector(from), both ? vector(from + side.stride) : Vec{}));
          }
        };
        if (there - i >= kLanes)
          zip([](const float* p) { return load(p); });
        else
          zip([&](const float* p) { return load_up_to(p, max(there - i, 0)); });
      }
    }
  }
}

}  // namespace llmcore::LLMCORE_ISA
