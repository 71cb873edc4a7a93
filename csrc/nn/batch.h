// What a model is trained on or run on: token ids and who they are.
#pragma once

#include "core/tensor.h"

namespace llmcore {

// int32 tensors. Lengths count real tokens; what follows them in a row is padding that nothing
// sees. A model with one stack is given the ids of that one; "the ids" below are those of the
// decoder where there is one, since it is its output that the head reads.
struct Batch {
  Tensor enc_ids;         // [B, S]
  Tensor enc_lengths;     // [B], or empty: all S
  Tensor dec_ids;         // [B, T]
  Tensor dec_lengths;     // [B], or empty: all T
  Tensor prefix_lengths;  // [B] leading tokens every query of the decoder sees, or empty: none
  Tensor types;           // segments, shaped as enc_ids or else dec_ids; empty: all 0
  // The loss is taken at these positions alone.
  Tensor rows;     // [R] flat indices b * T + t, ascending; or empty: every position
  Tensor targets;  // [R]
  Tensor weights;  // [R] float32
  float label_smoothing = 0.0f;
  bool labels = false;  // targets are labels of the classifier, not tokens

  const Tensor& ids() const { return dec_ids ? dec_ids : enc_ids; }
  const Tensor& lengths() const { return dec_ids ? dec_lengths : enc_lengths; }
};

// Loss as a sum and the weight to divide it by, so that averages over micro-batches are exact.
struct LossSum {
  double sum = 0.0;
  double weight = 0.0;
};

}  // namespace llmcore
