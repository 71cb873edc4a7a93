// Linear: y = x W^T + b, with what follows it fused in. Knows the format weights are stored in.
#pragma once

#include <initializer_list>
#include <string>

#include "nn/config.h"
#include "nn/params.h"
#include "ops/matmul.h"

namespace llmcore {

// Several named parts, such as q, k and v, share one matrix: their outputs lie side by side.
struct LinearPart {
  std::string name;
  int64_t rows;
};

class Linear {
 public:
  Linear(const ParamBuilder& builder, std::initializer_list<LinearPart> parts, int64_t in,
         bool bias, float std);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

  // y [N, out] from x [N, in]. `fused` carries activation, dropout and residual.
  void forward(const Context& context, const Tensor& x, const Tensor& y,
               MatmulArgs fused = {}) const;

  // Parameter gradients from dy [N, out] and the input x [N, in] of the forward pass.
  void backward_params(const Context& context, const Tensor& dy, const Tensor& x) const;

  // dx [N, in] from dy; `fused` carries accumulate, or the derivative of what came before x.
  void backward_input(const Context& context, const Tensor& dy, const Tensor& dx,
                      MatmulArgs fused = {}) const;

 private:
  int64_t in_ = 0, out_ = 0;
  Param weight_, bias_;
};

// Projections that write into the residual stream start smaller, so that its variance does not grow
// with depth (Radford et al. 2019, section 2.3).
float residual_std(const Config& config);

}  // namespace llmcore
