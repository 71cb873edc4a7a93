// Activation functions of one vector, for the kernels that fuse them and for activation_cpu.cpp.
#pragma once

#include "ops/activation.h"
#include "simd/math.h"

namespace llmcore::LLMCORE_ISA {

// activation(x) and its derivative there.
LLMCORE_INLINE Activated activate(Activation activation, Vec x) {
  switch (activation) {
    case Activation::kRelu:
      return relu(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kSilu:
      return silu(x);
    case Activation::kTanh: {
      const Vec t = tanh(x);
      return {t, 1.0f - t * t};
    }
    case Activation::kNone:
      break;
  }
  return {x, broadcast(1.0f)};
}

template <Activation kActivation>
struct Fixed {
  static constexpr Activation value = kActivation;
};

// f(Fixed<activation>): a loop of its own for each function.
template <class F>
LLMCORE_INLINE void with_fixed(Activation activation, F f) {
  switch (activation) {
    case Activation::kNone:
      return f(Fixed<Activation::kNone>{});
    case Activation::kRelu:
      return f(Fixed<Activation::kRelu>{});
    case Activation::kGelu:
      return f(Fixed<Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(Fixed<Activation::kGeluTanh>{});
    case Activation::kSilu:
      return f(Fixed<Activation::kSilu>{});
    case Activation::kTanh:
      return f(Fixed<Activation::kTanh>{});
  }
}

}  // namespace llmcore::LLMCORE_ISA
