// What options and the text so far do to a row of logits before a token is chosen.
//
// In this order, which is that of the transformers library:
//   repetition penalty   z < 0 ? z r : z / r, of every token so far     (Keskar et al. 2019)
//   presence, frequency  z - presence [n > 0] - frequency n, where the token came n times since the
//                        prompt
//   no repeated n-gram   -inf for what would complete an n-gram a second time
//   min_new_tokens       -inf for the stop ids until then
//   banned, forced       -inf for the banned ids; for all others than a forced one, which gets 0
//   temperature          z / temperature, when sampling
#pragma once

#include <cstdint>

#include "generate/options.h"

namespace llmcore {

// A sequence whose next token is to be chosen.
struct History {
  const int32_t* ids = nullptr;  // [length] prompt and new tokens
  int64_t length = 0;
  int64_t prompt_length = 0;
  int64_t new_tokens() const { return length - prompt_length; }
};

// The token that comes at `place`, counted in new tokens, whatever the model says; -1 where any
// may.
int32_t forced_id(const GenerationOptions& options, int64_t place);

// Whether they all leave the logits of this token as they are, the temperature aside.
bool leaves_logits(const GenerationOptions& options, const History& history);

// Applies it all to logits [V] in place. `counts` [V] is scratch: zero before, zero after.
void process_logits(const GenerationOptions& options, const History& history, float* logits,
                    int64_t vocab_size, int32_t* counts);

}  // namespace llmcore
