// Softmax cross-entropy with label smoothing, and the output layer fused with it.
//
// With label smoothing s (Szegedy et al. 2016) and class weights w, all 1 by default, and lse_n the
// log of the sum of exponentials of row n, as torch.nn.functional.cross_entropy defines them:
//
//   loss_n = (1 - s) w[target] (lse_n - z_n[target]) + s / V sum_v w[v] (lse_n - z_n[v])
//   dz_n[v] = scale_n ((1 - s) w[target] (softmax_n[v] - [v = target])
//                      + s / V (softmax_n[v] sum_u w[u] - w[v]))
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

struct CrossEntropyArgs {
  Tensor logits;   // [N, V]
  Tensor targets;  // [N] int32; a negative one is ignored: loss 0, gradient 0
  float label_smoothing = 0.0f;
  Tensor class_weight;  // [V], or empty: ones
  Tensor losses;        // [N]
  Tensor row_scale;     // [N] d(total)/d(loss_n); with dlogits
  Tensor dlogits;       // [N, V], may be logits; or empty
  // From one row of both to the next, on a GPU; 0: dense. Columns beyond V count for nothing; in
  // dlogits they are left alone or become zero.
  int64_t stride = 0;
};

// Loss of hidden states under an output matrix, in chunks of rows: [N, V] is never held whole.
struct LinearCrossEntropyArgs {
  Tensor hidden;   // [N, C]
  Tensor weight;   // [V, C], on a GPU maybe bfloat16; without gradients it may be packed
  Tensor bias;     // [V], or empty
  Tensor targets;  // [N] int32, negative: ignored
  float label_smoothing = 0.0f;
  float logit_scale = 1.0f;  // logits = logit_scale * (hidden weight^T + bias)
  Tensor losses;             // [N]
  Tensor row_scale;          // [N]; with the gradients
  Tensor dhidden;            // [N, C], or empty: no backward; may be hidden
  Tensor dweight;            // [V, C] accumulates, or empty
  bool overwrite = false;    // dweight holds nothing yet
  Tensor dbias;              // [V] accumulates, or empty
};

struct CrossEntropyKernels {
  void (*cross_entropy)(const Context&, const CrossEntropyArgs&);
};

// Throws IndexError for a target of V or above.
void cross_entropy(const Context& context, const CrossEntropyArgs& args);
void linear_cross_entropy(const Context& context, const LinearCrossEntropyArgs& args);

}  // namespace llmcore
