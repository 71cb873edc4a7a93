// Elementary functions of vectors, written once for every vector width.
//
// Coefficients are minimax in relative error: Remez exchange in 40-digit arithmetic (mpmath), then
// rounded to float. The bounds in the comments are of the finished functions against float64, with
// fused multiply-adds; without them (SSE) add one unit in the last place (ulp). A NaN gives a NaN.
#pragma once

#include "core/normal.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {

// c[0] + c[1] x + c[2] x^2 + ...
template <int kCount>
LLMCORE_INLINE Vec polynomial(const float (&c)[kCount], Vec x) {
  Vec sum = broadcast(c[kCount - 1]);
#pragma GCC unroll 16
  for (int i = kCount - 2; i >= 0; --i) sum = fma(sum, x, broadcast(c[i]));
  return sum;
}

LLMCORE_INLINE Vec abs(Vec x) {
  return __builtin_bit_cast(Vec, __builtin_bit_cast(VecI, x) & 0x7fffffff);
}

// e^x for x <= 0, as softmax and the functions below need it, or e^(x + extra) where |extra| <= 0.1
// is what rounding x lost. Within 1 ulp; 1 at 0; 0 below -86.99, where results would soon be
// subnormal, which is slow on many machines.
//
// x = n log(2) + r with |r| <= log(2) / 2, and e^x = 2^n e^r, where the factor 2^n is made of
// integer bits. The polynomial gives 2 e^r, error 2^-28, so that the factor 2^(n - 1) never
// overflows.
template <class... Extra>
LLMCORE_INLINE Vec exp_nonpositive(Vec x, Extra... extra) {
  constexpr float kLog2E = 1.44269504f;
  // log(2) in two parts, the first of 9 bits: n times it is exact.
  constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
  // Adding it leaves n + 126, the exponent bits of 2^(n - 1), in the lowest bits of the sum.
  constexpr float kRound = 0x1.8p23f + 126.0f;
  constexpr float kCoefficients[] = {2.0f,
                                     2.0f,
                                     2 * 0.49999994f,
                                     2 * 0.16666521f,
                                     2 * 0.04166839f,
                                     2 * 0.00836871f,
                                     2 * 0.0013814612f};
  x = x < -87.4f ? broadcast(-87.4f) : x;  // n = -126: the bits of the factor are all zero
  const Vec shifted = fma(x, broadcast(kLog2E), broadcast(kRound));
  const Vec n = shifted - kRound;
  Vec r = fma(n, broadcast(-kLog2High), x);
  r = (fma(n, broadcast(-kLog2Low), r) + ... + extra);
  const VecI factor = __builtin_bit_cast(VecI, shifted) << 23;
  return polynomial(kCoefficients, r) * __builtin_bit_cast(Vec, factor);
}

// e^x for any x: infinity from 88.73 on. The one above is right up to 89.
LLMCORE_INLINE Vec exp(Vec x) {
  return exp_nonpositive(x > 89.0f ? broadcast(89.0f) : x);
}

// Natural logarithm of one number; rows have one each, so it need not be a vector's.
LLMCORE_INLINE float log(float x) {
  return __builtin_logf(x);
}

// sigmoid(x) = 1 / (1 + e^-x) and 1 - sigmoid(x) = sigmoid(-x), both within 3 ulp.
struct Sigmoid {
  Vec value, complement;
};
LLMCORE_INLINE Sigmoid sigmoid_pair(Vec x) {
  const VecI positive = x > 0.0f;
  const Vec small = exp_nonpositive(-abs(x));
  const Vec larger = 1.0f / (1.0f + small), smaller = small * larger;
  return {positive ? larger : smaller, positive ? smaller : larger};
}
LLMCORE_INLINE Vec sigmoid(Vec x) {
  return sigmoid_pair(x).value;
}

// Within 2 ulp: odd polynomial (error 2^-28) below 0.6, exponentials above.
LLMCORE_INLINE Vec tanh(Vec x) {
  constexpr float kCoefficients[] = {-0.333333f, 0.13331924f, -0.05378383f, 0.02079597f,
                                     -0.0058951546f};
  const Vec size = abs(x), square = x * x;
  const Vec near = fma(x * square, polynomial(kCoefficients, square), x);
  const Vec small = exp_nonpositive(-2.0f * size);
  const Vec far = 1.0f - 2.0f * small / (1.0f + small);
  return size < 0.6f ? near : (x < 0.0f ? -far : far);
}

// The normal distribution at x: density phi(x) = e^(-x^2 / 2) / sqrt(2 pi) and cumulative
// Phi(x) = (1 + erf(x / sqrt(2))) / 2, within 3 and 6 ulp, in the far tails too.
//
// The tail as in core/normal.h. t^2 is rounded exactly.
struct Normal {
  Vec density, cumulative;
};
LLMCORE_INLINE Normal normal(Vec x) {
  Vec t = abs(x);
  t = t > 14.0f ? broadcast(14.0f) : t;
  const Vec high = __builtin_bit_cast(Vec, __builtin_bit_cast(VecI, t) & ~0xfff);  // 12 bits
  const Vec bell = exp_nonpositive(high * high * -0.5f, (high - t) * (high + t) * 0.5f);
  const Vec inverse = 1.0f / (t + kNormalTail.shift);
  const Vec w = (t - kNormalTail.shift) * inverse;
  const Vec tail = bell * (polynomial(kNormalTail.coefficients, w) * inverse);
  return {bell * 0.39894228f, x < 0.0f ? tail : 1.0f - tail};
}

// The activation functions (ops/activation.h) and their derivatives, which share most of the work:
// who wants one of them pays for that alone. Relative accuracy holds for large negative x too,
// where a textbook 1 + tanh or 1 + erf would cancel.
struct Activated {
  Vec value, slope;
};

LLMCORE_INLINE Activated relu(Vec x) {
  return {x < 0.0f ? Vec{} : x, x > 0.0f ? broadcast(1.0f) : Vec{}};
}

LLMCORE_INLINE Activated silu(Vec x) {
  const Sigmoid s = sigmoid_pair(x);
  return {x * s.value, s.value * fma(x, s.complement, broadcast(1.0f))};
}

LLMCORE_INLINE Activated gelu(Vec x) {
  const Normal at = normal(x);
  return {x * at.cumulative, fma(x, at.density, at.cumulative)};
}

// 0.5 (1 + tanh(u)) = sigmoid(2 u), with 2 u = x (a + b x^2), a = 2 sqrt(2 / pi), b = 0.044715 a.
LLMCORE_INLINE Activated gelu_tanh(Vec x) {
  constexpr float kLinear = 1.59576912f, kCubic = 0.0713548163f;
  // Beyond 16 the sigmoid is exactly 0 or 1, and powers of x could overflow.
  Vec near = x > 16.0f ? broadcast(16.0f) : x;
  near = near < -16.0f ? broadcast(-16.0f) : near;
  const Vec square = near * near;
  const Sigmoid s = sigmoid_pair(near * fma(square, broadcast(kCubic), broadcast(kLinear)));
  const Vec slope = fma(square, broadcast(3.0f * kCubic), broadcast(kLinear));
  return {x * s.value, s.value * fma(near * slope, s.complement, broadcast(1.0f))};
}

}  // namespace llmcore::LLMCORE_ISA
