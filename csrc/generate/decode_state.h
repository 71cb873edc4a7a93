// DecodeState: what a model remembers of the sequences it is writing.
//
// Each sequence has a place of its own in the cache for the tokens it adds; the tokens before may
// stand in the places of others. So when beams part, a table of places is copied, never keys and
// values. What a decoder sees of an encoder is computed once for each source.
#pragma once

#include <cstdint>
#include <vector>

#include "generate/kv_cache.h"
#include "nn/transformer.h"

namespace llmcore {

using TokenIds = std::vector<int32_t>;

// The next tokens of one sequence.
struct DecodeRow {
  int64_t sequence;
  const int32_t* ids;  // [count], they follow what it has seen
  int64_t count;
};

class DecodeState {
 public:
  // Room for `sequences` of `capacity` tokens. With an encoder, `sources` holds what it reads, and
  // `source_of` [sequences] which of them each sequence is about. Throws ShapeError for a source
  // that is empty or longer than the positions.
  DecodeState(Transformer& model, int64_t sequences, int64_t capacity,
              const std::vector<TokenIds>& sources, const std::vector<int32_t>& source_of);

  // logits [rows, V] after the last token of each row.
  void advance(const std::vector<DecodeRow>& rows, const Tensor& logits);

  // Tokens a sequence has seen; those it saw can be forgotten.
  int64_t seen(int64_t sequence) const { return seen_[sequence]; }
  void forget(int64_t sequence) { seen_[sequence] = 0; }

  // Sequences first, first + 1, … become continuations of sequences first + parents[0], ….
  void reorder(int64_t first, const std::vector<int32_t>& parents);

 private:
  void encode(const std::vector<TokenIds>& sources);

  Transformer& model_;
  KvCache cache_;
  std::vector<int32_t> places_;  // [sequences, capacity] where each token stands
  std::vector<int64_t> seen_;    // [sequences]
  MemoryCache memory_;
  std::vector<int32_t> source_of_;       // [sequences]; empty without an encoder
  std::vector<int32_t> source_lengths_;  // [sources]
};

}  // namespace llmcore
