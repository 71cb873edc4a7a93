// Softmax cross-entropy with label smoothing, and the output layer fused with it.
//
//   loss_n = (1 - s) (lse_n - z_n[target]) + s (lse_n - mean_v z_n[v]),  s: label smoothing
//            (Szegedy et al. 2016; the same as torch.nn.functional.cross_entropy)
//   dz_n[v] = scale_n (softmax_n[v] - (1 - s) [v = target] - s / V)
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

struct CrossEntropyArgs {
  Tensor logits;   // [N, V]
  Tensor targets;  // [N] int32; a negative one is ignored: loss 0, gradient 0
  float label_smoothing = 0.0f;
  Tensor class_weight;  // [V] weight of each target class, or empty: ones
  Tensor losses;        // [N]
  Tensor row_scale;     // [N] d(total)/d(loss_n); with dlogits
  Tensor dlogits;       // [N, V], may be logits; or empty
};

// Loss of hidden states under an output matrix, in chunks of rows: [N, V] is never held whole.
struct LinearCrossEntropyArgs {
  Tensor hidden;   // [N, C]
  Tensor weight;   // [V, C]
  Tensor bias;     // [V], or empty
  Tensor targets;  // [N] int32, negative: ignored
  float label_smoothing = 0.0f;
  float logit_scale = 1.0f;  // logits = logit_scale * (hidden weight^T + bias)
  Tensor losses;             // [N]
  Tensor row_scale;          // [N]; with the gradients
  Tensor dhidden;            // [N, C], or empty: no backward; may be hidden
  Tensor dweight;            // [V, C] accumulates, or empty
  Tensor dbias;              // [V] accumulates, or empty
};

struct CrossEntropyKernels {
  void (*cross_entropy)(const Context&, const CrossEntropyArgs&);
};

// Throws IndexError for a target of V or above.
void cross_entropy(const Context& context, const CrossEntropyArgs& args);
void linear_cross_entropy(const Context& context, const LinearCrossEntropyArgs& args);

}  // namespace llmcore
