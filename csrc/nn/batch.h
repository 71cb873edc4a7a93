// What a model is trained on or run on: token ids and who they are.
#pragma once

#include "core/tensor.h"

namespace llmcore {

// int32 tensors. Lengths count real tokens; what follows them in a row is padding that nothing
// sees.
struct Batch {
  Tensor ids;             // [B, T]
  Tensor lengths;         // [B], or empty: all T
  Tensor prefix_lengths;  // [B] leading tokens every query sees, or empty: none
  Tensor types;           // [B, T], or empty
  // The loss is taken at these positions alone.
  Tensor rows;     // [R] flat indices b * T + t, ascending; or empty: every position
  Tensor targets;  // [R]
  Tensor weights;  // [R] float32
  float label_smoothing = 0.0f;
};

// Loss as a sum and the weight to divide it by, so that averages over micro-batches are exact.
struct LossSum {
  double sum = 0.0;
  double weight = 0.0;
};

}  // namespace llmcore
