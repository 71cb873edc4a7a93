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
  if constexpr (kDotParts == 1) {
    __builtin_memcpy(to, &words, sizeof(words));
  } else {
    for (int i = 0; i < kLanes; ++i) to[i] = bfloat16_word(words[i]);
  }
}

// to[w * width + i] holds elements k + 2 w and k + 2 w + 1 of item `item + i` of `side`, zero
// beyond its `items` or the last k. Whole vectors are written: up to kLanes - 1 words after the
// last.
template <class Word>
static void copy_bfloat16(const Operand& side, int64_t item, int64_t items, int64_t k,
                          int64_t depth, Word* to, int64_t width) {
  for (int64_t w = 0; w < ceil_div(depth, 2); w += kLanes) {
    const int64_t left = depth - 2 * w, words = min(ceil_div(left, 2), kLanes);
    // Ascending, so that what is written beyond an item's place is overwritten by the next.
    const auto put = [&](VecU(&block)[kLanes], int64_t i) {
      for (int64_t r = 0; r < words; ++r) put_words(to + (w + r) * width + i, block[r]);
    };
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t valid = min(items - i, kLanes);
      if (side.along_k) {
        Vec block[kLanes];
        for (int64_t r = 0; r < kLanes; ++r) {
          const float* from = side.at(item + i + min(r, max(valid - 1, 0)), k + 2 * w);
          block[r] = r < valid ? as_floats(bfloat16_pairs(load_up_to(from, left),
                                                          load_up_to(from + kLanes, left - kLanes)))
                               : Vec{};
        }
        transpose(block);
        VecU turned[kLanes];
        for (int r = 0; r < kLanes; ++r) turned[r] = as_bits(block[r]);
        put(turned, i);
      } else {
        for (int64_t r = 0; r < words; ++r) {
          const float* from = side.at(item + i, k + 2 * (w + r));
          const bool both = 2 * (w + r) + 1 < depth;
          const Vec low = load_up_to(from, valid);
          const Vec high = both ? load_up_to(from + side.stride, valid) : Vec{};
          put_words(to + (w + r) * width + i, bfloat16_zip(low, high));
        }
      }
    }
  }
}

}  // namespace llmcore::LLMCORE_ISA
