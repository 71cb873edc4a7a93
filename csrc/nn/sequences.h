// Sequences: who the rows of an activation matrix are, and whom each may see.
#pragma once

#include "core/tensor.h"

namespace llmcore {

// Keys and values of one layer for tokens already seen: what attention needs of a cache.
struct LayerCache {
  Tensor k, v;  // [B, S, Hkv * D], S the cache's capacity
};

// N = B * T rows: row b * T + t is query t of sequence b.
struct Sequences {
  int64_t batch = 0, queries = 0;  // B, T
  bool causal = true;
  const int32_t* lengths = nullptr;         // [B] keys that are real, those in the cache
                                            // included; null: all T; given with a cache
  const int32_t* prefix_lengths = nullptr;  // [B]; null: 0
  const int32_t* past = nullptr;            // [B] tokens that stand before query 0; null: 0
  Tensor positions;                         // [B, T] int32
  Tensor cos, sin;                          // [P, R/2] rotary tables, or empty
  const LayerCache* caches = nullptr;       // [L], or null: keys are the queries' own sequences
};

// Dropout sites number the places of a model where a mask is drawn: eight a layer, two a sublayer.
// `site` is that of a sublayer's output; what is dropped inside it is the next.
inline constexpr uint32_t kEmbeddingSite = 0xfffff;
inline uint32_t sublayer_site(int64_t layer, int sublayer) {
  return static_cast<uint32_t>(layer * 8 + sublayer * 2);
}
inline uint32_t inner_site(uint32_t site) {
  return site + 1;
}
inline int64_t layer_of_site(uint32_t site) {
  return site / 8;
}

}  // namespace llmcore
