// The tail of the normal distribution, as the CPU's kernels and CUDA's evaluate it:
//
//   Phi(-t) = e^(-t^2 / 2) P(w) / (t + 3.5),   w = (t - 3.5) / (t + 3.5)
//
// after Shepherd and Laframboise (1981). P is fitted for 0 <= t <= 14, error 2^-27; t^2 must be
// exact but for what e^x can be told of it: 84 half-ulps of it would show.
#pragma once

namespace llmcore {

struct NormalTail {
  float shift;
  float coefficients[10];  // of P, lowest power first
};

inline constexpr NormalTail kNormalTail = {
    3.5f,
    {0.74441606f, -0.5655618f, 0.315425f, -0.116052896f, 0.01740691f, 0.006492409f, -0.0031777974f,
     -0.00049465365f, 0.00042566002f, 0.0001127365f}};

}  // namespace llmcore
