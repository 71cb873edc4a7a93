// Beam search: the best sequences that continue a prompt, grown several at a time.
//
//   total = sum_t log p(y_t | y_<t, prompt)        of log-softmax(logits) after process_logits()
//   score = total / n^length_penalty               n new tokens, a stop id counted
//
// A step looks at the (1 + number of stop ids, at least 2) num_beams continuations of highest total
// among those of all beams, so that enough remain whatever ends. Of the first num_beams of them,
// those that end, by a stop id or at the greatest length, go to the finished list, which keeps the
// num_beams of best score; the first num_beams that do not end are the beams of the next step. The
// search ends at the greatest length, where nothing may follow, or when the list is full and
// options.early_stopping says so. This is the search of the transformers library, whose results it
// gives.
//
// Diverse beams (Vijayakumar et al. 2018) are groups that search one after the other, each with a
// list of its own. Within a step a token's log-probability in one group is less by
//   diversity_penalty [beams of earlier groups that go on with it]
// unless it is forced. The sequences of all groups are ranked together.
//
// Where totals are equal, the lower beam comes first, then the lower token. A search is a function
// of its prompt, the logits and the options: it depends on neither other prompts nor threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"
#include "generate/logits.h"
#include "generate/options.h"
#include "ops/sampling.h"

namespace llmcore {

// A finished sequence.
struct BeamHypothesis {
  std::vector<int32_t> ids;              // new tokens, the stop id that ended it included
  std::vector<float> log_probabilities;  // of each under the model: of the logits as they came
  double total = 0.0;
  double score = 0.0;
  bool stopped = false;  // by a stop id; otherwise the length ran out
};

// One worker's memory.
struct BeamScratch {
  float* processed = nullptr;  // [V] log-probabilities
  int32_t* counts = nullptr;   // [V] all zero between uses
};

// The search for one prompt. advance_beams() below does a step of several.
class BeamSearch {
 public:
  // `most_new_tokens`: how many the model's positions allow. Throws ConfigError below 1, and what
  // check_options() throws.
  BeamSearch(const GenerationOptions& options, const std::vector<int32_t>& prompt,
             int64_t vocab_size, int64_t most_new_tokens);

  // Rows of logits the next step takes: one at first, for the prompt; then one for each running
  // beam; none when the search is done.
  int64_t beams() const { return static_cast<int64_t>(beams_.size()); }
  bool done() const { return beams_.empty(); }
  int64_t vocab_size() const { return vocab_size_; }

  // First half of a step: takes the best continuations of `beam` from its log-probabilities [V];
  // false where these are NaN, as one NaN or infinite logit makes them. It touches no other beam,
  // throws nothing and allocates nothing.
  bool read(int64_t beam, const float* log_probabilities, const BeamScratch& scratch);
  // The same from the most likely tokens, the best first: at least candidates() of them, of logits
  // that leaves_logits() is true of.
  bool read(int64_t beam, const Choice* best);
  int64_t candidates() const { return static_cast<int64_t>(most_candidates_); }
  bool leaves_logits(int64_t beam) const;
  // Second half, when every beam has been read: chooses the beams of the next step.
  void advance();

  // [beams()] What the new beams are: which beam of the last step each continues, and with which
  // token, the one the model reads next.
  const std::vector<int32_t>& parents() const { return parents_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }

  // Whether a sequence has finished.
  bool found() const;
  // The num_return_sequences best of the sequences finished so far, best first. Fewer only where
  // the processors leave no more; diverse groups may find the same one.
  std::vector<BeamHypothesis> best() const;

 private:
  // A token that may follow a beam.
  struct Candidate {
    float log_probability;  // as processed: what the total gains
    float model_log_probability;
    int32_t id;
  };

  struct Beam {
    std::vector<int32_t> ids;              // prompt and new tokens
    std::vector<float> log_probabilities;  // of the new tokens under the model
    double total = 0.0;
    std::vector<Candidate> candidates;  // best first, of the row that was read
  };

  // A beam and a token that may follow it.
  struct Continuation {
    double total;
    int32_t beam;
    float model_log_probability;
    int32_t id;
  };

  struct Group {
    int64_t begin = 0;                     // its running beams are [begin, end)
    int64_t end = 1;                       // at first they all share the prompt's row
    std::vector<BeamHypothesis> finished;  // best first, at most width_
  };

  History history(const Beam& beam) const;
  void keep_best(const float* log_probabilities, std::vector<Candidate>& best) const;
  std::vector<Continuation> continuations(const Group& group) const;
  Beam extended(const Continuation& continuation) const;
  void finish(Group& group, const Continuation& continuation, bool stopped) const;
  bool closed(const Group& group, const std::vector<Continuation>& running) const;
  double normalised(double total, int64_t length) const;

  GenerationOptions options_;  // max_new_tokens no more than the positions allow
  int64_t vocab_size_;
  int64_t prompt_length_;
  int64_t width_;           // beams of a group
  size_t most_candidates_;  // of one beam
  int64_t new_tokens_ = 0;
  std::vector<Beam> beams_;
  std::vector<Group> groups_;
  std::vector<int32_t> parents_;
  std::vector<int32_t> tokens_;
};

// A step of every search. The rows of logits (float32 [sum of beams(), V], unchanged) are those of
// the first search, then those of the second, and so on; a search that is done has none. Throws
// ConfigError where a row holds NaN or infinity, or where a search ends without any sequence.
void advance_beams(const Context& context, const Tensor& logits,
                   const std::vector<BeamSearch*>& searches);

}  // namespace llmcore
