// Calls the norm operations with a layer's parameters.
#include "nn/norm.h"

namespace llmcore {

Norm::Norm(const ParamBuilder& builder, const Config& config)
    : Norm(builder, Shape{.kind = config.norm,
                          .size = config.hidden_size,
                          .eps = config.norm_eps,
                          .bias = config.norm_bias}) {}

Norm::Norm(const ParamBuilder& builder, const Shape& shape) : kind_(shape.kind), eps_(shape.eps) {
  weight_ = builder.ones("weight", shape.size);
  if (shape.bias) bias_ = builder.zeros("bias", shape.size);
}

void Norm::forward(const Context& context, const Tensor& x, const Tensor& y, Saved& saved) const {
  saved.x = x;
  saved.rstd = context.arena->keep(DType::kFloat32, x.rows());
  if (kind_ == NormKind::kLayer) saved.mean = context.arena->keep(DType::kFloat32, x.rows());
  forward_again(context, saved, y);
}

RowNorm Norm::of_rows() const {
  return {.kind = kind_, .eps = eps_, .weight = weight_.weight(), .bias = bias_.weight()};
}

void Norm::forward_again(const Context& context, const Saved& saved, const Tensor& y) const {
  norm_forward(context, {.kind = kind_,
                         .eps = eps_,
                         .x = saved.x,
                         .weight = weight_.weight(),
                         .bias = bias_.weight(),
                         .y = y,
                         .mean = saved.mean,
                         .rstd = saved.rstd});
}

void Norm::backward(const Context& context, const Tensor& dy, const Saved& saved, const Tensor& dx,
                    bool accumulate) const {
  norm_backward(context, {.kind = kind_,
                          .accumulate = accumulate,
                          .dy = dy,
                          .x = saved.x,
                          .weight = weight_.weight(),
                          .mean = saved.mean,
                          .rstd = saved.rstd,
                          .dx = dx,
                          .dweight = weight_.accumulating_gradient(context),
                          .dbias = bias_.accumulating_gradient(context)});
}

}  // namespace llmcore
