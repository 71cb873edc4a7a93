// Keys and values into the tiles of a cache, and how a product reads them: what knows its formats.
#pragma once

#include "ops/attention_tile.h"
#include "simd/half.h"
#include "simd/int8.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// A format: how many numbers a word has; the i-th of each lane's word; numbers that follow one
// another in memory, read and written. Where it has scales, they are no part of the numbers.
struct Float32Words {
  using Number = float;
  static constexpr int kNumbers = 1;
  static constexpr bool kScaled = false;
  LLMCORE_INLINE static Vec number(Vec words, int) { return words; }
  LLMCORE_INLINE static Vec read(const float* from) { return load(from); }
  LLMCORE_INLINE static void write(float* to, Vec x) { store(to, x); }
};

struct BFloat16Words {
  using Number = uint16_t;
  static constexpr int kNumbers = 2;
  static constexpr bool kScaled = false;
  LLMCORE_INLINE static Vec number(Vec words, int i) {
    return as_floats(i == 0 ? as_bits(words) << 16 : as_bits(words) & 0xffff0000u);
  }
  LLMCORE_INLINE static Vec read(const uint16_t* from) { return widen_bfloat16(load_half(from)); }
  LLMCORE_INLINE static void write(uint16_t* to, Vec x) { store_half(to, narrow_bfloat16(x)); }
};

struct Int8Words {
  using Number = int8_t;
  static constexpr int kNumbers = 4;
  static constexpr bool kScaled = true;
  LLMCORE_INLINE static Vec number(Vec words, int i) {
    return to_float(__builtin_bit_cast(VecI, as_bits(words) << (24 - 8 * i)) >> 24);
  }
  LLMCORE_INLINE static Vec read(const int8_t* from) { return to_float(load_bytes(from)); }
  LLMCORE_INLINE static void write(int8_t* to, Vec x) { store_bytes(to, round_to_int(x)); }
};

// The right side of a product (attention_tile.h): a tile of keys, a tile of values.
template <class Format>
struct KeyColumns {
  using Element = float;
  static constexpr int kSteps = Format::kNumbers;
  LLMCORE_INLINE static Vec read(const float* words, int i) {
    return Format::number(load(words), i);
  }
};
template <class Format>
struct ValueColumns {
  using Element = typename Format::Number;
  static constexpr int kSteps = 1;
  LLMCORE_INLINE static Vec read(const Element* numbers, int) { return Format::read(numbers); }
};

template <class Body>
LLMCORE_INLINE void with_format(DType dtype, Body body) {
  if (dtype == DType::kBFloat16)
    body(BFloat16Words{});
  else if (dtype == DType::kInt8)
    body(Int8Words{});
  else
    body(Float32Words{});
}

// Where in a tile its scales begin.
LLMCORE_INLINE int64_t scales_at(const KvTiles& tiles) {
  return kTileTokens * tiles.words();
}

// Keeps x [D] as token j of a tile.
template <class Format>
void keep_token(const KvTiles& tiles, const float* x, float* tile, int64_t j) {
  constexpr int kNumbers = Format::kNumbers;
  const int64_t stride = tiles.transposed ? kTileTokens : 1;
  float* to = tile + (tiles.transposed ? j : j * tiles.words());
  float inverse = 1.0f;
  if constexpr (Format::kScaled) {
    const Rounding rounding = int8_rounding(x, tiles.width);
    tile[scales_at(tiles) + j] = rounding.scale;
    inverse = rounding.inverse;
  }
  for_each_vector(0, tiles.width, [&](int64_t i, int64_t n) {
    typename Format::Number numbers[kLanes];
    Format::write(numbers, load_up_to(x + i, n) * inverse);
    for (int64_t k = 0; k < n; k += kNumbers)
      __builtin_memcpy(to + (i + k) / kNumbers * stride, numbers + k, sizeof(float));
  });
}

// A product whose right side lies in a tile; p.b_row counts words.
LLMCORE_INLINE void multiply_kept(const KvTiles& tiles, Product p) {
  if (tiles.dtype == DType::kFloat32) return multiply(p);
  with_format(tiles.dtype, [&](auto format) {
    using Format = decltype(format);
    if (tiles.transposed) return multiply<KeyColumns<Format>>(p);
    p.b_row *= Format::kNumbers;
    multiply<ValueColumns<Format>>(p);
  });
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
