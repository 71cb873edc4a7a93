// What a batch must be for a model: checked once, before a pass begins.
#pragma once

#include "nn/batch.h"
#include "nn/config.h"

namespace llmcore {

// Whether there is a last position. Relative ones and none go on for ever.
bool has_bounded_positions(const Config& config);

// Throws ConfigError for ids of a stack that the model lacks, ShapeError for what does not fit.
void check_batch(const Config& config, const Batch& batch);

// The same where only the encoder is to run, if there is one.
void check_encoder_batch(const Config& config, const Batch& batch);

// The same for what is to be predicted, and for what a classifier is asked of.
void check_targets(const Config& config, const Batch& batch);
void check_labels(const Config& config, const Batch& batch);

}  // namespace llmcore
