// AdamW (Loshchilov and Hutter 2019) on flat buffers, and the global gradient norm.
//
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   p = p - lr weight_decay p - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//
// Evaluated in the order of torch.optim.AdamW, so that trajectories differ by rounding alone.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

// Settings are double: 1 - beta2 of a float 0.999 would be off by one part in 80,000.
struct AdamWArgs {
  double lr = 0.0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  int64_t step = 1;         // from 1, for the bias corrections
  float grad_scale = 1.0f;  // multiplies the gradient first: clipping, division by the target count
  Tensor param, m, v;       // [n], updated in place
  Tensor grad;              // [n]
};

struct SquareSumArgs {
  Tensor x;                   // [n]
  double* partial = nullptr;  // [square_sum_blocks(n)] sums of the blocks, provided by the checks
};

// The sum is taken in blocks of this many elements, then over the blocks in order.
inline constexpr int64_t kSquareSumBlock = int64_t{1} << 16;

struct OptimizerKernels {
  void (*adamw)(const Context&, const AdamWArgs&);
  void (*square_sum)(const Context&, const SquareSumArgs&);
};

// Throws ConfigError for a setting out of its range.
void adamw(const Context& context, const AdamWArgs& args);

// Sum of squares, in double: the square root of it is the gradient norm.
double square_sum(const Context& context, const Tensor& x);

}  // namespace llmcore
