// Activation functions and gated linear units, elementwise.
//
//   gelu       x Phi(x), Phi by erf                                     (Hendrycks and Gimpel 2016)
//   gelu_tanh  0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))         (the same, approximated)
//   silu       x sigmoid(x)
//   tanh       of the pooler
//   gated      y = activation(gate) * up                               (Shazeer 2020)
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu, kTanh };

// Throws ConfigError listing the names there are.
Activation activation_from_name(const char* name);

struct ActivationArgs {
  Activation activation = Activation::kNone;
  Tensor x;  // [n elements, any shape]
  Tensor y;  // same shape; may be x
};

struct ActivationBackwardArgs {
  Activation activation = Activation::kNone;
  Tensor dy;  // any shape
  Tensor x;   // input of the forward pass
  Tensor dx;  // may be dy
};

// gate and up may be the halves of one [N, 2F] matrix: give the distance between rows.
struct GatedArgs {
  Activation activation = Activation::kSilu;
  Tensor gate, up;         // [N, F]
  int64_t row_stride = 0;  // elements between rows of gate and of up; 0: F
  Tensor y;                // [N, F]
};

struct GatedBackwardArgs {
  Activation activation = Activation::kSilu;
  Tensor dy;                // [N, F]
  Tensor gate, up;          // [N, F], rows row_stride apart
  Tensor dgate, dup;        // [N, F], rows drow_stride apart; may be gate and up
  int64_t row_stride = 0;   // 0: F
  int64_t drow_stride = 0;  // 0: F
};

struct ActivationKernels {
  void (*forward)(const Context&, const ActivationArgs&);
  void (*backward)(const Context&, const ActivationBackwardArgs&);
  void (*gated_forward)(const Context&, const GatedArgs&);
  void (*gated_backward)(const Context&, const GatedBackwardArgs&);
};

void activation_forward(const Context& context, const ActivationArgs& args);
void activation_backward(const Context& context, const ActivationBackwardArgs& args);
void gated_forward(const Context& context, const GatedArgs& args);
void gated_backward(const Context& context, const GatedBackwardArgs& args);

}  // namespace llmcore
