// Sequences: who the rows of an activation matrix are, and whom each may see.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "ops/attention.h"

namespace llmcore {

// A decoder's cache. Sequences may share rows, so that beams are reordered by changing `rows`.
struct Cache {
  std::vector<LayerCache> layers;  // [L]
  Tensor rows;                     // [B, S] int32: where token t of sequence b is, or goes
  bool apart = false;              // no two of the pass are parts of one text

  KvCacheView layer(int64_t number) const {
    return {layers[number].k, layers[number].v, rows, {rows.dim(1), 1}};
  }
};

// What cross-attention looks at: the encoder's output, or the keys and values made of it.
struct Memory {
  int64_t keys = 0;                // S
  Tensor lengths;                  // [B] int32, keys that are real; empty: all S
  Tensor hidden;                   // [B * S, C]
  Tensor gradient;                 // [B * S, C] accumulates, in backward
  std::vector<LayerCache> layers;  // [L] instead of `hidden`, or none
  Tensor rows;                     // [B] int32, which of their rows each sequence reads
};

// Whose attention weights a pass is to write down: those of some heads, for a run of queries.
struct AttentionProbe {
  int64_t layer = 0, head = 0;
  int64_t first_query = 0, queries = 0;
  float* weights = nullptr;  // [B, queries, S]
};

// N = B * T rows: row b * T + t is query t of sequence b.
struct Sequences {
  int64_t batch = 0, queries = 0;  // B, T
  bool causal = true;
  // [B] int32 all: keys that are real, those in the cache included (empty: all T; given with a
  // cache), of these a prefix that all see, and tokens that stand before query 0 (empty: 0).
  Tensor lengths, prefix_lengths, past;
  Tensor positions;              // [B, T] int32
  Tensor cos, sin;               // [P, R/2] rotary tables, or empty
  Tensor buckets;                // [1 or B, T + S - 1] int32, of distances, with relative positions
  ScoreView bias, dbias;         // relative positions, and their gradient; or no data
  const Cache* cache = nullptr;  // null: keys are the queries' own sequences
  const Memory* memory = nullptr;  // null: no cross-attention
  // Looked at by self-attention, or by cross-attention; empty: nobody asks.
  const std::vector<AttentionProbe>* self_probes = nullptr;
  const std::vector<AttentionProbe>* cross_probes = nullptr;

  int64_t rows() const { return batch * queries; }
  // Keys of self-attention, S: of a cache as many as the longest sequence has, or more.
  int64_t key_room = 0;
  int64_t keys() const {
    if (cache == nullptr) return queries;
    int64_t most = key_room;
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t length = lengths.host<int32_t>()[b];
      most = length > most ? length : most;
    }
    return most;
  }
};

// Dropout sites number the places of a model where a mask is drawn: eight a layer, two a sublayer.
// `site` is that of a sublayer's output; what is dropped inside it is the next. The layers of an
// encoder count on from those of the decoder.
inline constexpr uint32_t kEmbeddingSite = 0xfffff;
inline constexpr uint32_t kEncoderEmbeddingSite = 0xffffe;
inline constexpr uint32_t kClassifierSite = 0xffffd;
inline constexpr uint32_t kFirstAdapterSite = 0x80000;
inline uint32_t sublayer_site(int64_t layer, int sublayer) {
  return static_cast<uint32_t>(layer * 8 + sublayer * 2);
}
inline uint32_t inner_site(uint32_t site) {
  return site + 1;
}
// Of the adapters beside linear layer `which`, below 4, of the sublayer.
inline uint32_t adapter_site(uint32_t site, uint32_t which) {
  return kFirstAdapterSite + 2 * site + which;
}

}  // namespace llmcore
