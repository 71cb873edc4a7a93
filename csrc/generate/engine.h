// Engine: continues texts, each by a token or more a step; they join and leave between steps.
//
// A text has a place in the cache. A step runs the model on what texts have not seen: first on the
// newest token of all that are being written, then on prompts, of which it reads no more than
// `prompt_tokens`, shared fairly, so that a long prompt holds up nobody. What a text that has left
// has seen stays in its place until another text needs that, the least recently used place first;
// a prompt that begins like what is in any place copies that part instead of computing it.
//
// A text that speculates has guesses of what follows read behind its newest token, in the same
// pass. The model chooses a token after each of them, as if it had written them; those of its
// choices that come after right guesses are what it would have written, and the rest is forgotten.
//
// Where a GPU can choose what the texts that are being written wait for, all of them at once, it is
// asked for the pass of the next step before anybody looks at the choices of this one: the ids go
// from pass to pass on the device, which never waits for the CPU. What it then writes for a text
// that has ended meanwhile nobody looks at.
//
// On the CPU a text's tokens are, bit for bit, those it gets alone: they depend on its request
// only. A GPU has other kernels for other numbers of rows, and log-probabilities differ in their
// last bits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "generate/decode_state.h"
#include "generate/draft.h"
#include "generate/options.h"
#include "generate/sample.h"

namespace llmcore {

// A text to be continued.
struct Request {
  TokenIds prompt;  // what the decoder begins with
  TokenIds source;  // what it is about, with an encoder
  GenerationOptions options;
  // When the model's positions are used up the text ends, or goes on from the latest half of its
  // context.
  bool slide = false;
  uint64_t twin = 0;  // requests that are otherwise the same draw other numbers
};

enum class Finish { kNo, kStop, kLength, kFailed };

struct GeneratedToken {
  int64_t text;  // what join() gave
  int32_t id;
  float log_probability;  // under the model
  Finish finish;
  bool guessed;         // and the model has confirmed it
  std::string failure;  // why there is no token, where finish is kFailed
};

class Engine {
 public:
  // Room for room.sequences texts at a time; `draft` guesses for those that want it, or is null.
  // Throws what DraftModel throws.
  Engine(Transformer& model, Transformer* draft, const DecodeRoom& room, int64_t prompt_tokens);

  // Throws what decode_room() throws, ShapeError for a request that needs more room than a text
  // has, and ConfigError for beam search and for guesses of a draft model that there is not.
  void check(const Request& request) const;

  // Takes a text in and numbers it, counting from 0. Throws what check() throws, and ShapeError
  // where has_room() is false.
  int64_t join(Request request);
  bool has_room() const { return texts_.size() < places_.size(); }

  // Ends a text now; one that has ended may be named.
  void leave(int64_t text);

  bool done() const { return texts_.empty(); }

  // The new tokens, text by text in the order of joining; of one that speculates, several.
  std::vector<GeneratedToken> step();

  // Tokens of prompts that the model has read, and that were copied instead.
  int64_t read_tokens() const { return read_tokens_; }
  int64_t copied_tokens() const { return copied_tokens_; }
  // Tokens that were guessed, and those of them that the model has confirmed.
  int64_t guessed_tokens() const { return guessed_tokens_; }
  int64_t accepted_tokens() const { return accepted_tokens_; }
  // Passes that were asked for before the tokens they read were known.
  int64_t passes_ahead() const { return passes_ahead_; }

 private:
  struct Text {
    int64_t number;
    Request request;
    TokenIds ids;  // prompt and new tokens; within a step, then guesses
    size_t place;
    int64_t most_guesses;
    int64_t guessed = 0;  // ids that are guesses
    int64_t begin = 0;    // first id still in the context
    bool encoded = false, started = false;
    bool ended = false;
  };

  struct Place {
    TokenIds seen;  // the ids whose keys and values stand here, but for one that is asked ahead
    bool taken = false;
    int64_t last_used = 0;
  };

  // The next `count` ids of a text that the model has not seen.
  struct Reading {
    Text* text;
    int64_t count;
  };

  // What a step has computed so far: logits, a row for each token to be chosen.
  struct Round {
    Tensor logits;  // [R, V]
    std::vector<ChooseRow> rows;
    std::vector<Text*> texts;  // each has a row after its newest token and after each guess
  };

  Text* find(int64_t number);
  int64_t unseen(const Text& text) const;
  // How the token at `length`, counted from the beginning of the ids, is to be chosen.
  ChooseRow choosing(const Text& text, int64_t length) const;
  // Whether a pass itself can choose it.
  bool chosen_in_pass(const Text& text, int64_t length) const;
  // Asks for a pass over the newest tokens of the texts, which chooses those that follow; `rows`
  // are theirs.
  void ask(const std::vector<Text*>& texts, const std::vector<DecodeRow>& rows);
  // The same over tokens that are still being chosen, those of the texts `asked`, unless a text has
  // something to wait for.
  void ask_ahead(const std::vector<int64_t>& asked);
  void encode_sources();
  // What a pass reads of prompts, `most` tokens at most; nothing when all are read.
  std::vector<Reading> next_readings(int64_t most);
  // Copies what the prompt shares with a place; false if it is better to wait for one of `earlier`,
  // which are being read and share more.
  bool start(Text& text, const std::vector<Text*>& earlier);
  // Adds guesses to the texts that wait for a token and want them.
  void guess(const std::vector<Text*>& waiting);
  void read(const std::vector<Reading>& readings, Round& round);
  // Adds the tokens that were chosen after right guesses, and forgets the wrong ones.
  void settle(Text& text, const Choice* choices, std::vector<GeneratedToken>& tokens);
  // Adds a chosen token and says whether it was the last.
  GeneratedToken extend(Text& text, const Choice& choice, bool guessed);
  bool at_limit(const Text& text, int64_t length) const;
  // Whether another token fits, after letting go of the older half of the context if asked.
  bool make_room(Text& text);
  void forget(Text& text, int64_t count);
  void drop_ended();

  Transformer& model_;
  DecodeRoom room_;
  int64_t prompt_tokens_;
  DecodeState state_;
  std::optional<DraftModel> draft_;
  std::vector<Place> places_;
  std::vector<Text> texts_;
  std::vector<int64_t> asked_;  // texts whose next token the model has been asked for, by number
  int64_t joined_ = 0, clock_ = 0;
  int64_t read_tokens_ = 0, copied_tokens_ = 0, guessed_tokens_ = 0, accepted_tokens_ = 0;
  int64_t passes_ahead_ = 0;
};

// Joins all prompts, in room that is made for them; sources [prompts] or none. Prompts that are the
// same get different numbers. Throws what Engine and join() throw.
Engine engine_for(Transformer& model, Transformer* draft, const std::vector<TokenIds>& prompts,
                  const std::vector<TokenIds>& sources, const GenerationOptions& options,
                  bool slide);

}  // namespace llmcore
