// DecodeState: what a model remembers of the sequences it is writing.
//
// Each sequence has a place of its own in the cache for the tokens it adds; the tokens before may
// stand in the places of others. So when beams part, a table of places is copied, never keys and
// values. What a decoder sees of an encoder is computed once for each source.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "generate/chosen.h"
#include "generate/kv_cache.h"
#include "generate/options.h"
#include "nn/transformer.h"

namespace llmcore {

using TokenIds = std::vector<int32_t>;

// Room for `sequences` of `tokens` each. With an encoder, they are about `sources` of up to
// `source_tokens`, which they share evenly: the first of them are about source 0.
struct DecodeRoom {
  int64_t sequences, tokens;
  int64_t sources = 0, source_tokens = 0;
  DType cache_dtype = DType::kFloat32;  // of the keys and values
};

// What prompts and sources need, a sequence for each prompt, where the longest prompt is to grow by
// max_new_tokens. Throws ShapeError for one that is empty or longer than the model's positions, and
// what check_options() throws.
DecodeRoom decode_room(const Config& config, const std::vector<TokenIds>& prompts,
                       const std::vector<TokenIds>& sources, const GenerationOptions& options);

// The next tokens of one sequence.
struct DecodeRow {
  int64_t sequence;
  const int32_t* ids;  // [count], they follow what it has seen
  int64_t count;
  int64_t wanted = 1;   // logits are asked for after the last so many
  int64_t chosen = -1;  // instead of `ids`, the token chosen from this row of the pass before
};

class DecodeState {
 public:
  DecodeState(Transformer& model, const DecodeRoom& room);

  // Encodes ids[i] as source sources[i], in the place of what was there.
  void encode(const std::vector<int32_t>& sources, const std::vector<const TokenIds*>& ids);

  // logits [W, V] after each wanted token, in the order of the rows.
  void advance(const std::vector<DecodeRow>& rows, const Tensor& logits);

  // On a GPU: the same for rows of one token, after each of which a token is chosen by its settings
  // (logits row and place aside). Returns before that is done; two passes may be asked for before
  // the first is collected.
  void ask(const std::vector<DecodeRow>& rows, std::vector<SampleSettings> settings);
  std::vector<Choice> collect() { return chosen_->collect(); }

  // Tokens a sequence has seen; all but the first `count` can be forgotten.
  int64_t seen(int64_t sequence) const { return seen_[sequence]; }
  void forget(int64_t sequence, int64_t count = 0) { seen_[sequence] = count; }

  // `sequence` has now seen the first `count` tokens of `other` and no more. Their keys and values
  // are copied, so that neither needs the other. Not for sequences that were reordered.
  void begin_as(int64_t sequence, int64_t other, int64_t count);

  // Sequences first, first + 1, … become continuations of sequences first + parents[0], ….
  void reorder(int64_t first, const std::vector<int32_t>& parents);

 private:
  // A pass over the rows, which fills in what is told of them.
  void run(const std::vector<DecodeRow>& rows, DecodeArgs args);

  Transformer& model_;
  KvCache cache_;
  std::vector<int32_t> places_;  // [sequences, tokens] where each token stands
  std::vector<int64_t> seen_;    // [sequences]
  KvCache memory_;
  int64_t sequences_per_source_;         // 0 without an encoder
  std::vector<int32_t> source_lengths_;  // [sources]
  std::unique_ptr<Chosen> chosen_;       // made by the first ask()
};

}  // namespace llmcore
