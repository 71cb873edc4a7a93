// Activation functions of one vector, for the kernels that fuse them and for activation_cpu.cpp.
#pragma once

#include "ops/activation.h"
#include "simd/math.h"

namespace llmcore::LLMCORE_ISA {

LLMCORE_INLINE Vec activate(Activation activation, Vec x) {
  switch (activation) {
    case Activation::kRelu:
      return relu(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kSilu:
      return silu(x);
    case Activation::kTanh:
      return tanh(x);
    case Activation::kNone:
      break;
  }
  return x;
}

LLMCORE_INLINE Vec activate_derivative(Activation activation, Vec x) {
  switch (activation) {
    case Activation::kRelu:
      return relu_derivative(x);
    case Activation::kGelu:
      return gelu_derivative(x);
    case Activation::kGeluTanh:
      return gelu_tanh_derivative(x);
    case Activation::kSilu:
      return silu_derivative(x);
    case Activation::kTanh:
      return 1.0f - tanh(x) * tanh(x);
    case Activation::kNone:
      break;
  }
  return broadcast(1.0f);
}

}  // namespace llmcore::LLMCORE_ISA
