// Generation: continues a ragged batch of prompts, one token of each at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "generate/kv_cache.h"
#include "generate/options.h"
#include "generate/sample.h"
#include "nn/transformer.h"

namespace llmcore {

enum class Finish { kNo, kStop, kLength };

struct GeneratedToken {
  int64_t index;  // which prompt it continues
  int32_t id;
  float log_probability;  // under the model
  Finish finish;
};

// Finished sequences give up their place in the cache, so that the batch shrinks as texts end.
class Generation {
 public:
  // `slide` says what happens when the model's positions are used up: the text ends, or goes on
  // from the latest half of its context. Throws ShapeError for a prompt that is empty or longer
  // than the positions, and what check_options() throws.
  Generation(Transformer& model, const std::vector<std::vector<int32_t>>& prompts,
             const GenerationOptions& options, bool slide);

  bool done() const { return running_.empty(); }

  // Chooses the next token of every running sequence, in the order of the prompts.
  std::vector<GeneratedToken> step();

  // Ends the text of prompt `index` now.
  void finish(int64_t index);

 private:
  struct Sequence {
    int64_t index;             // of its prompt
    uint64_t twin;             // earlier prompts that are the same: they draw other numbers
    std::vector<int32_t> ids;  // prompt and new tokens
    int64_t prompt_length;
    int64_t begin = 0;   // first id still in the context
    int64_t cached = 0;  // ids from `begin` on whose keys and values are in the cache
    bool ended = false;
  };

  // Drops ended sequences; the last ones take their places in the cache.
  void compact();
  // Runs the model on the ids that are not in the cache; logits [running, V].
  void advance(const Tensor& logits);
  // Adds the chosen token and says whether it was the last.
  GeneratedToken extend(Sequence& sequence, const Choice& choice);
  // Whether another token fits, after letting go of the older half of the context if asked.
  bool make_room(Sequence& sequence);

  Transformer& model_;
  GenerationOptions options_;
  bool slide_;
  int64_t limit_;  // tokens a context may hold
  KvCache cache_;
  std::vector<Sequence> running_;  // sequence i has place i in the cache
};

}  // namespace llmcore
