// Choosing the next token of each sequence: greedy, or sampled after top-k, top-p and min-p.
//
//   top-k  keeps logits no smaller than the k-th largest                        (Fan et al. 2018)
//   top-p  keeps the fewest largest whose probabilities sum to at least p   (Holtzman et al. 2020)
//   min-p  keeps probabilities of at least min_p times the largest             (Nguyen et al. 2024)
//
// Where logits are equal, the lower id comes first. A choice is a function of the row, the options
// and (seed, sequence, position) alone: it does not depend on the other rows of the batch.
#pragma once

#include <string>

#include "core/context.h"
#include "core/tensor.h"
#include "generate/logits.h"
#include "generate/options.h"
#include "ops/sampling.h"

namespace llmcore {

struct ChooseRow {
  const GenerationOptions* options = nullptr;  // checked by check_options() before
  History history;
  // Which random numbers this sequence gets. Two sequences of one prompt need two.
  uint64_t sequence = 0;
};

// choices[b] from logits[b] (float32 [B, V], unchanged) and rows[b]. Logits of a GPU stay there but
// for the rows that a processor changes (generate/logits.h), which the CPU takes.
void choose_tokens(const Context& context, const Tensor& logits, const ChooseRow* rows,
                   Choice* choices);

// How a GPU chooses the same by itself where a row's logits are left as they are; of the history
// only lengths are looked at.
SampleSettings settings_of(const ChooseRow& row, int64_t vocab_size, int64_t of_logits = 0,
                           int64_t place = 0);

// What is wrong, in a sentence about sequence `sequence`.
std::string failure_message(ChoiceFailure failure, int64_t sequence);

}  // namespace llmcore
