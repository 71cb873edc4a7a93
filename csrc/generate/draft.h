// Guesses of the tokens that follow, which a model then confirms several at a time.
//
// They come from the text itself, which often repeats what it has said (Saxena 2023), or from a
// smaller model (Leviathan et al. 2023). A wrong guess costs time, never a token: what is written
// is what the model alone would have written.
#pragma once

#include <vector>

#include "generate/decode_state.h"
#include "generate/sample.h"

namespace llmcore {

// Adds `count` guesses to ids: what followed the last time that the latest n tokens came before, in
// ids or else in `source`, for the largest n up to `longest` for which they did. A guess that
// reaches the end of the text goes on with itself, so that a loop is followed for ever. None where
// not even the last token came before.
void guess_by_ngram(TokenIds& ids, const TokenIds& source, int64_t longest, int64_t count);

// A text that is to get guesses from a model.
struct DraftText {
  int64_t place;  // as in the engine
  TokenIds* ids;  // prompt and new tokens; guesses are added here
  int64_t begin;  // first id still in the context
  int64_t prompt_length;
  const GenerationOptions* options;
  uint64_t twin;
  int64_t count;  // of guesses that are wanted
};

// A model that guesses, and what it remembers of each place.
class DraftModel {
 public:
  // `room` is the engine's. Throws ConfigError where the draft cannot guess what `model` writes.
  DraftModel(Transformer& draft, const Transformer& model, const DecodeRoom& room);

  // Guesses what the draft would write by each text's own options. It reads about `most` tokens it
  // has not seen: a text that it has not read to the end gets no guess yet, nor does one that is
  // longer than the draft's positions.
  void guess(std::vector<DraftText>& texts, int64_t most);

 private:
  // Ids of the context that the draft has not seen, once what it has seen and they lack is
  // forgotten.
  int64_t unseen(const DraftText& text);

  Transformer& draft_;
  DecodeRoom room_;
  DecodeState state_;
  std::vector<TokenIds> seen_;  // by place
};

}  // namespace llmcore
