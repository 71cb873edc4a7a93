// Keys and values into the tiles of a cache, and how a product reads them: what knows its formats.
#pragma once

#include "ops/attention_tile.h"
#include "simd/half.h"
#include "simd/int8.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Of the formats two are what products multiply: Floats and Pairs. The numbers of the third are
// widened, and tokens have scales.
struct Int8Words {
  static constexpr int kNumbers = 4;
  LLMCORE_INLINE static Vec along_row(const float* from, int64_t count, float factor) {
    return as_floats(int8_words(from, count, factor));
  }
};

// The right side of a product of floats (attention_tile.h): a tile of int8 keys, of int8 values.
struct Int8Keys {
  using Words = Floats;
  using Element = float;
  static constexpr int kSteps = Int8Words::kNumbers;
  LLMCORE_INLINE static Vec read(const float* words, const float*, int i) {
    const VecU bits = as_bits(load(words)) << (24 - 8 * i);
    return to_float(__builtin_bit_cast(VecI, bits) >> 24);
  }
};
struct Int8Values {
  using Words = Floats;
  using Element = int8_t;
  static constexpr int kSteps = 1;
  LLMCORE_INLINE static Vec read(const int8_t* numbers, const int8_t*, int) {
    return to_float(load_bytes(numbers));
  }
};
// Of pairs: two tokens of a tile of bfloat16 values.
struct BFloat16Values {
  using Words = Pairs;
  using Element = uint16_t;
  static constexpr int kSteps = 1;
  LLMCORE_INLINE static Vec read(const uint16_t* first, const uint16_t* second, int) {
    return as_floats(load_half(first) | load_half(second) << 16);
  }
};

template <class Body>
LLMCORE_INLINE void with_format(DType dtype, Body body) {
  if (dtype == DType::kBFloat16)
    body(Pairs{});
  else if (dtype == DType::kInt8)
    body(Int8Words{});
  else
    body(Floats{});
}

// Where in a tile its scales begin.
LLMCORE_INLINE int64_t scales_at(const KvTiles& tiles) {
  return kTileTokens * tiles.words();
}

// Keeps the numbers [D] of `count` tokens, `stride` apart, as those of a tile from token j on.
template <class Words>
void keep_tokens(const KvTiles& tiles, const float* from, int64_t stride, int64_t count,
                 float* tile, int64_t j) {
  const int64_t width = tiles.width;
  float factors[kTileTokens];
  for (int64_t i = 0; i < count; ++i) {
    factors[i] = 1.0f;
    if (tiles.dtype != DType::kInt8) continue;
    const Rounding rounding = int8_rounding(from + i * stride, width);
    tile[scales_at(tiles) + j + i] = rounding.scale;
    factors[i] = rounding.inverse;
  }
  const auto words = [&](int64_t i, int64_t c) {
    return Words::along_row(from + i * stride + c, width - c, factors[i]);
  };
  int64_t i = 0;
  for (; tiles.transposed && i + kLanes <= count; i += kLanes)
    read_transposed<Words>(
        width, [&](int64_t r, int64_t c) { return words(i + r, c); }, tile + j + i);
  for (; i < count; ++i) {
    for (int64_t c = 0; c < width; c += Words::kNumbers * kLanes) {
      const int64_t first = c / Words::kNumbers, n = min(kLanes, words_of<Words>(width - c));
      const Vec some = words(i, c);
      if (tiles.transposed)
        for (int64_t w = 0; w < n; ++w) tile[(first + w) * kTileTokens + j + i] = some[w];
      else
        store_up_to(tile + (j + i) * tiles.words() + first, some, n);
    }
  }
}

// A product whose right side lies in a tile; p.b_row counts words.
template <class Words>
LLMCORE_INLINE void multiply_kept(const KvTiles& tiles, Product p) {
  if (tiles.dtype != DType::kInt8) return multiply<Plain<Words>>(p);
  if (tiles.transposed) return multiply<Int8Keys>(p);
  p.b_row *= Int8Words::kNumbers;
  multiply<Int8Values>(p);
}

// to[j / 2] = the words of tokens j and j + 1 of a tile of bfloat16 values, zeros for the
// `count`-th.
LLMCORE_NOINLINE void pair_tokens(const KvTiles& tiles, const float* tile, int64_t count,
                                  float* to) {
  const auto* numbers = reinterpret_cast<const uint16_t*>(tile);
  const int64_t stride = Pairs::kNumbers * tiles.words();
  for (int64_t j = 0; j < count; j += 2, numbers += 2 * stride)
    for (int64_t c = 0; c < tiles.width; c += kLanes, to += kLanes) {
      static constexpr uint16_t kNone[kLanes] = {};
      const uint16_t* second = j + 1 < count ? numbers + stride + c : kNone;
      store(to, BFloat16Values::read(numbers + c, second, 0));
    }
}

// Scores or weights times the scales of their tokens, where the format has some: rows of kTileKeys.
LLMCORE_INLINE void apply_scales(const KvTiles& tiles, const float* tile, VecRange vecs,
                                 int64_t rows, float* x) {
  if (tiles.dtype != DType::kInt8) return;
  const float* scales = tile + scales_at(tiles);
  for (int64_t i = 0; i < rows; ++i, x += kTileKeys)
    for (int64_t j = vecs.begin * kLanes; j < vecs.end * kLanes; j += kLanes)
      store(x + j, load(x + j) * load(scales + j));
}

// One tile of what stands in several: its token j is that of tiles_of[j].
LLMCORE_NOINLINE void gather_tile(const KvTiles& tiles, float* const* tiles_of, int64_t count,
                                  float* to) {
  const int64_t words = tiles.words(), all = tiles.tile_words();
  if (!tiles.transposed) {
    for (int64_t j = 0; j < count; ++j) {
      __builtin_memcpy(to + j * words, tiles_of[j] + j * words, words * sizeof(float));
      if (all > scales_at(tiles)) to[scales_at(tiles) + j] = tiles_of[j][scales_at(tiles) + j];
    }
    return;
  }
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t lanes = min(count - first, kLanes);
    bool done[kLanes] = {};
    for (int64_t i = 0; i < lanes; ++i) {
      if (done[i]) continue;
      const float* from = tiles_of[first + i] + first;
      VecI mine{};
      for (int64_t k = i; k < lanes; ++k)
        if (tiles_of[first + k] == tiles_of[first + i]) {
          mine[k] = -1;
          done[k] = true;
        }
      for (int64_t at = 0; at < all; at += kTileTokens)
        store(to + first + at, select(mine, load(from + at), load(to + first + at)));
    }
  }
}

}  // namespace
}  // namespace llmcore::LLMCORE_ISA
