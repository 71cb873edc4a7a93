// How tokens are chosen: every option of generation, in one struct.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace llmcore {

// When a beam search whose list of finished sequences is full ends: as soon as it is (kYes); once
// no running beam would be better than the worst of the list, were it to end at its present length
// (kNo); or at the length that suits it best (kNever).
enum class EarlyStopping { kNo, kYes, kNever };

// Where guesses of the next tokens come from, which the model confirms several at a time: nowhere,
// from the text itself, or from a draft model.
enum class Speculate { kNo, kNgram, kDraft };

struct GenerationOptions {
  // Length, counted in new tokens.
  int64_t max_new_tokens = 128;
  int64_t min_new_tokens = 0;     // before these, stop_ids cannot be chosen
  std::vector<int32_t> stop_ids;  // a sequence ends after any of these

  // false: the most likely token (greedy). true: a random one, after the four restrictions below,
  // which are applied in this order.
  bool do_sample = false;
  double temperature = 1.0;  // divides the logits: below 1 sharper, above 1 flatter
  int64_t top_k = 0;         // only the k most likely, those as likely as the k-th included; 0: all
  double top_p = 1.0;        // only the fewest most likely whose probabilities reach this sum
  double min_p = 0.0;        // only those at least this fraction as likely as the most likely one

  // What was written before counts against a token.
  double repetition_penalty =
      1.0;  // of every token in the prompt or since: 1 none, above 1 less likely
  double presence_penalty = 0.0;     // subtracted from the logit of each new token so far, once
  double frequency_penalty = 0.0;    // subtracted as often as the token came
  int64_t no_repeat_ngram_size = 0;  // no run of this many tokens occurs twice; 0: they may

  std::vector<int32_t> banned_ids;  // never chosen
  std::vector<int32_t> forced_ids;  // the first new tokens, whatever the model says
  int32_t forced_eos_id = -1;       // the last of max_new_tokens, whatever the model says; -1: none

  // Beam search, for which do_sample is false; beam.h has the formulas.
  int64_t num_beams = 1;           // sequences grown at a time; 1: no beam search
  int64_t num_beam_groups = 1;     // which divide the beams evenly and are to differ
  double diversity_penalty = 0.0;  // of a token, for each time an earlier group chose it
  double length_penalty = 1.0;     // above 0 favours long sequences, below 0 short ones
  EarlyStopping early_stopping = EarlyStopping::kNo;
  int64_t num_return_sequences = 1;  // the best so many

  // Speculation, for which num_beams is 1. It changes no token.
  Speculate speculate = Speculate::kNo;
  int64_t num_draft_tokens = 7;  // guesses at a time, at most
  int64_t draft_ngram = 3;       // longest n-gram that is looked up

  DType cache_dtype = DType::kFloat32;  // of keys and values: float32, bfloat16 or int8

  uint64_t seed = 0;  // of sampling
};

// Throws ConfigError for a format that a cache cannot have.
DType cache_dtype_from_name(const std::string& name);

// Throws ConfigError for an option out of its range, IndexError for an id outside the vocabulary.
void check_options(const GenerationOptions& options, int64_t vocab_size);

}  // namespace llmcore
