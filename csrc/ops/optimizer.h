// AdamW (Loshchilov and Hutter 2019) on flat buffers, and the global gradient norm.
//
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   p = p - lr weight_decay p - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

struct AdamWArgs {
  float lr = 0.0f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.0f;
  int64_t step = 1;         // from 1, for the bias corrections
  float grad_scale = 1.0f;  // multiplies the gradient first: clipping, division by the target count
  Tensor param, grad, m, v;  // [n]
};

struct SquareSumArgs {
  Tensor x;               // [n]
  double* sum = nullptr;  // out
  Tensor partial;         // scratch, provided by the checking layer
};

struct OptimizerKernels {
  void (*adamw)(const Context&, const AdamWArgs&);
  void (*square_sum)(const Context&, const SquareSumArgs&);
};

void adamw(const Context& context, const AdamWArgs& args);

// Sum of squares, in blocks of fixed size: square root of it is the gradient norm.
double square_sum(const Context& context, const Tensor& x);

}  // namespace llmcore
