// Activation functions of one number (ops/activation.h) and their derivatives, for the kernels that
// fuse them and for activation_cuda.cu. As simd/math.h has them: relative accuracy holds for large
// negative x too, and a NaN stays one.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "ops/activation.h"

namespace llmcore::cuda {

// sigmoid(x) and 1 - sigmoid(x), neither of which cancels; e^-x may be infinite where x < 0.
struct Sigmoid {
  float value, complement;
};
__device__ __forceinline__ Sigmoid sigmoid_pair(float x) {
  const float power = expf(-x), value = 1.0f / (1.0f + power);
  return {value, x > 0.0f ? power * value : 1.0f - value};
}

// activation(x), and its derivative there. Who drops the derivative does not pay for it.
template <Activation kActivation>
__device__ __forceinline__ float activate_with_slope(float x, float& slope) {
  if constexpr (kActivation == Activation::kRelu) {
    slope = x > 0.0f ? 1.0f : 0.0f;
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (kActivation == Activation::kGelu) {
    const float cumulative = normcdff(x), density = expf(-0.5f * x * x) * 0.39894228f;
    slope = fmaf(x, density, cumulative);
    return x * cumulative;
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    // 0.5 (1 + tanh(u)) = sigmoid(2 u), with 2 u = x (a + b x^2), a = 2 sqrt(2 / pi),
    // b = 0.044715 a. Beyond 16 the sigmoid is 0 or 1, and powers of x could overflow.
    constexpr float kLinear = 1.59576912f, kCubic = 0.0713548163f;
    const float near = x > 16.0f ? 16.0f : x < -16.0f ? -16.0f : x, square = near * near;
    const Sigmoid s = sigmoid_pair(near * fmaf(square, kCubic, kLinear));
    slope = s.value * fmaf(near * fmaf(square, 3.0f * kCubic, kLinear), s.complement, 1.0f);
    return x * s.value;
  } else if constexpr (kActivation == Activation::kSilu) {
    const Sigmoid s = sigmoid_pair(x);
    slope = s.value * fmaf(x, s.complement, 1.0f);
    return x * s.value;
  } else if constexpr (kActivation == Activation::kTanh) {
    const float value = tanhf(x);
    slope = 1.0f - value * value;
    return value;
  } else {
    slope = 1.0f;
    return x;
  }
}
template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  float slope;
  return activate_with_slope<kActivation>(x, slope);
}

// visit(std::integral_constant) with the activation: a kernel of its own for each function.
template <class Visit>
void with_activation(Activation activation, Visit visit) {
  switch (activation) {
    case Activation::kNone:
      return visit(std::integral_constant<Activation, Activation::kNone>{});
    case Activation::kRelu:
      return visit(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kGelu:
      return visit(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return visit(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kSilu:
      return visit(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kTanh:
      return visit(std::integral_constant<Activation, Activation::kTanh>{});
  }
}

}  // namespace llmcore::cuda
