// The three matrix products of a linear layer.
#include "nn/linear.h"

#include <cmath>

namespace llmcore {

float residual_std(const Config& config) {
  const double layers = static_cast<double>(config.num_decoder_layers + config.num_encoder_layers);
  return config.init_std / static_cast<float>(std::sqrt(2.0 * layers));
}

Linear::Linear(const ParamBuilder& builder, std::initializer_list<LinearPart> parts, int64_t in,
               bool bias, float std)
    : in_(in) {
  for (const LinearPart& part : parts) {
    const Param weight = builder.matrix(part.name + ".weight", part.rows, in, std);
    if (!weight_) weight_ = weight;
    out_ += part.rows;
  }
  weight_.count = static_cast<int>(parts.size());
  if (!bias) return;
  for (const LinearPart& part : parts) {
    const Param zeros = builder.zeros(part.name + ".bias", part.rows);
    if (!bias_) bias_ = zeros;
  }
  bias_.count = static_cast<int>(parts.size());
}

void Linear::forward(const Context& context, const Tensor& x, const Tensor& y,
                     MatmulArgs fused) const {
  fused.a = x;
  fused.b = weight_.weight();
  fused.transpose_b = true;
  fused.c = y;
  fused.bias = bias_.weight();
  matmul(context, fused);
}

void Linear::backward_params(const Context& context, const Tensor& dy, const Tensor& x) const {
  ParamStore& store = *weight_.store;
  matmul(context, {.a = dy,
                   .b = x,
                   .c = store.gradient(weight_.index, weight_.count),
                   .transpose_a = true,
                   .accumulate = !store.first_write(weight_.index, weight_.count)});
  if (bias_) column_sum(context, {.x = dy, .out = bias_.accumulating_gradient(context)});
}

void Linear::backward_input(const Context& context, const Tensor& dy, const Tensor& dx,
                            MatmulArgs fused) const {
  fused.a = dy;
  fused.b = weight_.weight();
  fused.c = dx;
  matmul(context, fused);
}

}  // namespace llmcore
