// Generation: continues a ragged batch of prompts, one token of each at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "generate/decode_state.h"
#include "generate/options.h"
#include "generate/sample.h"

namespace llmcore {

enum class Finish { kNo, kStop, kLength };

struct GeneratedToken {
  int64_t index;  // which prompt it continues
  int32_t id;
  float log_probability;  // under the model
  Finish finish;
};

class Generation {
 public:
  // `slide` says what happens when the model's positions are used up: the text ends, or goes on
  // from the latest half of its context. With an encoder, prompts[i] is what the decoder begins
  // with and sources[i] what it is about. Throws ShapeError for a prompt or source that is empty or
  // longer than the positions, and what check_options() throws.
  Generation(Transformer& model, const std::vector<TokenIds>& prompts,
             const std::vector<TokenIds>& sources, const GenerationOptions& options, bool slide);

  bool done() const { return running_.empty(); }

  // Chooses the next token of every running sequence, in the order of the prompts.
  std::vector<GeneratedToken> step();

  // Ends the text of prompt `index` now.
  void finish(int64_t index);

 private:
  struct Sequence {
    int64_t index;  // of its prompt
    uint64_t twin;  // earlier prompts that are the same: they draw other numbers
    TokenIds ids;   // prompt and new tokens
    int64_t prompt_length;
    int64_t begin = 0;  // first id still in the context
    bool ended = false;
  };

  void drop_ended();
  // Runs the model on the ids that it has not seen; logits [running, V].
  void advance(const Tensor& logits);
  // Adds the chosen token and says whether it was the last.
  GeneratedToken extend(Sequence& sequence, const Choice& choice);
  // Whether another token fits, after letting go of the older half of the context if asked.
  bool make_room(Sequence& sequence);

  Transformer& model_;
  GenerationOptions options_;
  bool slide_;
  int64_t limit_;  // tokens a context may hold
  DecodeState state_;
  std::vector<Sequence> running_;
};

// Tokens that fit where the longest prompt is to grow by max_new_tokens. Throws ShapeError for a
// prompt that is empty or does not fit.
int64_t context_limit(const Config& config, const std::vector<TokenIds>& prompts,
                      const GenerationOptions& options);

}  // namespace llmcore
