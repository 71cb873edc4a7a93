// Heads: what self- and cross-attention share. Views of heads in packed rows, the arguments that
// the config decides, and looking at weights.
#pragma once

#include "nn/config.h"
#include "nn/sequences.h"
#include "ops/attention.h"

namespace llmcore {

// Heads from `first_head` on in `matrix` [B * rows, width], whose rows hold heads side by side.
HeadView heads_of(const Config& config, const Tensor& matrix, int64_t rows, int64_t first_head);

// What does not depend on where keys and values come from. `site` numbers the dropout of weights.
AttentionArgs attention_arguments(const Context& context, const Config& config,
                                  const Sequences& sequences, uint32_t site);

// Writes the weights that the probes of this layer ask for.
void look_at_weights(const Context& context, const AttentionArgs& args, int64_t layer,
                     const std::vector<AttentionProbe>* probes);

}  // namespace llmcore
