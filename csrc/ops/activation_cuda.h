// Activation functions of one number (ops/activation.h) and their derivatives, for the kernels that
// fuse them and for activation_cuda.cu. As simd/math.h has them: relative accuracy holds for large
// negative x too, and a NaN stays one.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "core/normal.h"
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

// The normal distribution at x: density and cumulative, the tail as in core/normal.h.
struct Normal {
  float density, cumulative;
};
__device__ __forceinline__ Normal normal(float x) {
  constexpr NormalTail kTail = kNormalTail;
  constexpr float kLargest = 15.0f;  // where e^(-t^2 / 2) is zero
  float t = fabsf(x);
  t = t > kLargest ? kLargest : t;
  const float high = __uint_as_float(__float_as_uint(t) & ~0xfffu);  // 12 bits: its square is exact
  const float rest = (high - t) * (high + t) * 0.5f;                 // at most 0.06
  const float e_rest =
      fmaf(rest, fmaf(rest, fmaf(rest, fmaf(rest, 1 / 24.0f, 1 / 6.0f), 0.5f), 1.0f), 1.0f);
  const float bell = expf(high * high * -0.5f) * e_rest;
  const float inverse = 1.0f / (t + kTail.shift), w = (t - kTail.shift) * inverse;
  float sum = 0.0f;
#pragma unroll
  for (int i = 9; i >= 0; --i) sum = fmaf(sum, w, kTail.coefficients[i]);
  const float tail = bell * (sum * inverse);
  return {bell * 0.39894228f, x < 0.0f ? tail : 1.0f - tail};
}

// activation(x), and its derivative there. Who drops the derivative does not pay for it.
template <Activation kActivation>
__device__ __forceinline__ float activate_with_slope(float x, float& slope) {
  if constexpr (kActivation == Activation::kRelu) {
    slope = x > 0.0f ? 1.0f : 0.0f;
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (kActivation == Activation::kGelu) {
    const Normal at = normal(x);
    slope = fmaf(x, at.density, at.cumulative);
    return x * at.cumulative;
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
