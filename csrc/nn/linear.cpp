// The three matrix products of a linear layer.
#include "nn/linear.h"

#include <cmath>

#include "core/beside.h"
#include "ops/activation.h"
#include "ops/elementwise.h"

namespace llmcore {

float residual_std(const Config& config) {
  const double layers = static_cast<double>(config.num_decoder_layers + config.num_encoder_layers);
  return config.init_std / static_cast<float>(std::sqrt(2.0 * layers));
}

Linear::Linear(const ParamBuilder& builder, std::initializer_list<LinearPart> parts, int64_t in,
               bool bias, float std, const LoraOptions& lora, uint32_t lora_site)
    : in_(in) {
  for (const LinearPart& part : parts) {
    const Param weight = builder.matrix(part.name + ".weight", part.rows, in, std);
    if (!weight_) weight_ = weight;
    out_ += part.rows;
  }
  weight_.count = static_cast<int>(parts.size());
  weight_.declare_packable();
  if (bias) {
    for (const LinearPart& part : parts) {
      const Param zeros = builder.zeros(part.name + ".bias", part.rows);
      if (!bias_) bias_ = zeros;
    }
    bias_.count = static_cast<int>(parts.size());
  }
  lora_ = Lora(builder, lora, lora_site, parts, in);
}

void Linear::forward(const Context& context, const Tensor& x, const Tensor& y,
                     MatmulArgs fused) const {
  fused.a = x;
  fused.b = weight_.operand(context);
  fused.transpose_b = true;
  fused.c = y;
  fused.bias = bias_.weight();
  if (!lora_) return matmul(context, fused);

  // The adapters' share comes before the rest of the tail; the residual may lie where y does.
  ScratchScope scope(*context.arena);
  Tensor input = x;
  if (fused.norm) {
    input = context.scratch(x.dim(0), x.dim(1));
    normalise(context, fused.norm, x, input);
  }
  Tensor sum = fused.pre_activation ? fused.pre_activation : y;
  if (sum.data == fused.residual.data) sum = context.scratch(y.dim(0), y.dim(1));
  matmul(context, {.a = input, .b = fused.b, .c = sum, .transpose_b = true, .bias = fused.bias});
  lora_.forward(context, input, sum);
  const Tensor activated = fused.activation == Activation::kNone ? sum : y;
  if (fused.activation != Activation::kNone)
    activation_forward(context, {.activation = fused.activation, .x = sum, .y = y});
  if (activated.data != y.data || fused.dropout.p > 0.0f || fused.residual)
    dropout(context,
            {.dropout = fused.dropout, .x = activated, .residual = fused.residual, .y = y});
}

void Linear::backward(const Context& context, const Tensor& dy, const Tensor& x, const Tensor& dx,
                      MatmulArgs fused) const {
  fused.a = dy;
  fused.b = weight_.operand(context);
  fused.c = dx;
  const bool in_place = dx.data == x.data || dx.data == dy.data;
  // Gradients of parameters, this layer's or those before, may be reading what dx overwrites.
  if (in_place || fused.accumulate) join(context);
  if (fused.gate_output) matmul(context, fused);  // x comes with it
  const auto add_gradients = [&](const Context& where) {
    weight_.add_gradient(where, dy, x);
    if (const Tensor dbias = bias_.accumulating_gradient(where))
      column_sum(where, {.x = dy, .out = dbias});
  };
  if (context.beside == nullptr || lora_ || in_place)
    add_gradients(context);
  else
    context.beside->run(context, add_gradients);
  if (fused.gate_output) return;
  if (!lora_) return matmul(context, fused);
  matmul(context, {.a = dy, .b = fused.b, .c = dx, .accumulate = fused.accumulate});
  lora_.backward(context, dy, x, dx);
  if (fused.gate_input)
    activation_backward(
        context, {.activation = fused.gate_activation, .dy = dx, .x = fused.gate_input, .dx = dx});
  if (fused.dropout.p > 0.0f) dropout(context, {.dropout = fused.dropout, .x = dx, .y = dx});
}

}  // namespace llmcore
