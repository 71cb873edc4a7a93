// Keys and values that a decoder keeps: as float32, bfloat16 or int8, in tiles.
//
// A row is the place of one sequence. For each kv head it has a tile for every kTileTokens tokens,
// made of 32-bit words: one float32, two bfloat16 or four int8 numbers of a token, in order, zeros
// behind the last. The words of keys are transposed, as scores of keys are computed side by side.
//
//   keys    [words, kTileTokens]   in int8 followed by scales [kTileTokens]
//   values  [kTileTokens, words]   likewise
//
// What is kept is rounded to nearest, ties to even. In int8 it is number times scale, a scale for
// each token and kv head: the largest magnitude over 127. So each token is rounded by itself.
#pragma once

#include "core/tensor.h"

namespace llmcore {

inline constexpr int64_t kTileTokens = 64;

// The keys, or the values, of one layer.
struct KvTiles {
  DType dtype = DType::kFloat32;
  bool transposed = false;  // keys
  int64_t tokens = 0;       // of a row: a multiple of kTileTokens
  int64_t heads = 0;        // Hkv
  int64_t width = 0;        // D
  float* data = nullptr;

  // Of a token, the scale aside; of a tile; of a row. Values are whole vectors of any length.
  LLMCORE_INLINE int64_t words() const {
    const int64_t numbers = transposed ? width : (width + 15) / 16 * 16;
    return (numbers * dtype_size(dtype) + 3) / 4;
  }
  LLMCORE_INLINE int64_t tile_words() const {
    return kTileTokens * (words() + (dtype == DType::kInt8 ? 1 : 0));
  }
  LLMCORE_INLINE int64_t row_words() const { return heads * (tokens / kTileTokens) * tile_words(); }
  // The tile that holds `token`.
  LLMCORE_INLINE float* tile(int64_t row, int64_t head, int64_t token) const {
    return data + ((row * heads + head) * tokens + token) / kTileTokens * tile_words();
  }
};

struct LayerCache {
  KvTiles k, v;
};

}  // namespace llmcore
