// Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) over the last axis.
//
//   layer: y = (x - mean) * rstd * weight + bias,   rstd = 1 / sqrt(variance + eps)
//   rms:   y = x * rstd * weight,                   rstd = 1 / sqrt(mean(x^2) + eps)
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

enum class NormKind { kLayer, kRms };

// How rows are normalised on their way into a matrix product (ops/matmul.h).
struct RowNorm {
  NormKind kind = NormKind::kLayer;
  float eps = 1e-5f;
  Tensor weight;  // [C]; empty: they are not
  Tensor bias;    // [C], or empty: zeros; layer norm only

  explicit operator bool() const { return static_cast<bool>(weight); }
};

struct NormForwardArgs {
  NormKind kind = NormKind::kLayer;
  float eps = 1e-5f;
  Tensor x;       // [N, C]
  Tensor weight;  // [C], or empty: ones
  Tensor bias;    // [C], or empty: zeros; layer norm only
  Tensor y;       // [N, C]; may be x
  Tensor mean;    // [N] saved for backward, or empty; layer norm only
  Tensor rstd;    // [N] saved for backward, or empty
};

struct NormBackwardArgs {
  NormKind kind = NormKind::kLayer;
  bool accumulate = false;  // dx += instead of dx =
  Tensor dy;                // [N, C]
  Tensor x;                 // [N, C]
  Tensor weight;            // [C], or empty
  Tensor mean;              // [N]; layer norm only
  Tensor rstd;              // [N]
  Tensor dx;                // [N, C]; may be dy
  Tensor dweight;           // [C] accumulates, or empty
  Tensor dbias;             // [C] accumulates, or empty
  Tensor partial;           // [norm_partials(), 2, C] scratch; the checking layer provides it
};

// Rows are summed for dweight and dbias in this many blocks, then the blocks in order.
int64_t norm_partials(const Context& context, int64_t rows, int64_t width);

struct NormKernels {
  void (*forward)(const Context&, const NormForwardArgs&);
  void (*backward)(const Context&, const NormBackwardArgs&);
};

void norm_forward(const Context& context, const NormForwardArgs& args);
// The same as `norm` says, y [N, C] from x [N, C], with nothing saved.
void normalise(const Context& context, const RowNorm& norm, const Tensor& x, const Tensor& y);
void norm_backward(const Context& context, const NormBackwardArgs& args);

}  // namespace llmcore
