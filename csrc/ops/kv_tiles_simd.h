// Keys and values into the tiles of a cache, and out of them as floats: what knows its formats.
#pragma once

#include "ops/kv_tiles.h"
#include "simd/half.h"
#include "simd/int8.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// A format: how many numbers a word has; the i-th of each lane's word; and numbers that follow one
// another in memory, read and written.
struct Float32Words {
  using Number = float;
  static constexpr int kNumbers = 1;
  static constexpr bool kScaled = false;
  LLMCORE_INLINE static Vec number(VecU words, int) { return as_floats(words); }
  LLMCORE_INLINE static Vec read(const float* from) { return load(from); }
  LLMCORE_INLINE static void write(float* to, Vec x) { store(to, x); }
};

struct BFloat16Words {
  using Number = uint16_t;
  static constexpr int kNumbers = 2;
  static constexpr bool kScaled = false;
  LLMCORE_INLINE static Vec number(VecU words, int i) {
    return as_floats(i == 0 ? words << 16 : words & 0xffff0000u);
  }
  LLMCORE_INLINE static Vec read(const uint16_t* from) { return widen_bfloat16(load_half(from)); }
  LLMCORE_INLINE static void write(uint16_t* to, Vec x) { store_half(to, narrow_bfloat16(x)); }
};

struct Int8Words {
  using Number = int8_t;
  static constexpr int kNumbers = 4;
  static constexpr bool kScaled = true;
  LLMCORE_INLINE static Vec number(VecU words, int i) {
    return to_float(__builtin_bit_cast(VecI, words << (24 - 8 * i)) >> 24);
  }
  LLMCORE_INLINE static Vec read(const int8_t* from) { return to_float(load_bytes(from)); }
  LLMCORE_INLINE static void write(int8_t* to, Vec x) { store_bytes(to, round_to_int(x)); }
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

// The scales of a tile.
LLMCORE_INLINE float* scales_of(const KvTiles& tiles, float* tile) {
  return tile + kTileTokens * tiles.words();
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
    scales_of(tiles, tile)[j] = rounding.scale;
    inverse = rounding.inverse;
  }
  for_each_vector(0, tiles.width, [&](int64_t i, int64_t n) {
    typename Format::Number numbers[kLanes];
    Format::write(numbers, load_up_to(x + i, n) * inverse);
    for (int64_t k = 0; k < n; k += kNumbers)
      __builtin_memcpy(to + (i + k) / kNumbers * stride, numbers + k, sizeof(float));
  });
}

// to[c][j] = element c of key j, for the vectors of keys that hold the first `count`.
template <class Format>
void widen_keys(const KvTiles& tiles, float* tile, int64_t count, float* to) {
  const int64_t words = tiles.words();
  const float* scales = scales_of(tiles, tile);
  for (int64_t w = 0; w < words; ++w, tile += kTileTokens, to += Format::kNumbers * kTileTokens)
    for (int64_t j = 0; j < count; j += kLanes) {
      const VecU word = as_bits(load(tile + j));
#pragma GCC unroll 4
      for (int i = 0; i < Format::kNumbers; ++i) {
        Vec x = Format::number(word, i);
        if constexpr (Format::kScaled) x *= load(scales + j);
        store(to + i * kTileTokens + j, x);
      }
    }
}

// to[j * stride + c] = element c of value j, zeros up to a whole vector, for the first `count`.
template <class Format>
void widen_values(const KvTiles& tiles, float* tile, int64_t count, float* to, int64_t stride) {
  using Number = typename Format::Number;
  const float* scales = scales_of(tiles, tile);
  for (int64_t j = 0; j < count; ++j, tile += tiles.words(), to += stride) {
    const Number* from = reinterpret_cast<const Number*>(tile);
    const float scale = Format::kScaled ? scales[j] : 1.0f;
    for_each_vector(0, tiles.width, [&](int64_t c, int64_t n) {
      Number rest[kLanes] = {};
      if (n < kLanes) __builtin_memcpy(rest, from + c, n * sizeof(Number));
      store(to + c, Format::read(n < kLanes ? rest : from + c) * scale);
    });
  }
}

// One tile of what stands in several: its token j is that of tiles_of[j].
LLMCORE_NOINLINE void gather_tile(const KvTiles& tiles, float* const* tiles_of, int64_t count,
                                  float* to) {
  const int64_t words = tiles.words(), all = tiles.tile_words();
  if (!tiles.transposed) {
    for (int64_t j = 0; j < count; ++j)
      __builtin_memcpy(to + j * words, tiles_of[j] + j * words, words * sizeof(float));
    for (int64_t j = 0; j < count && all > kTileTokens * words; ++j)
      scales_of(tiles, to)[j] = scales_of(tiles, tiles_of[j])[j];
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
