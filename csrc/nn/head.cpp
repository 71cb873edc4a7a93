// The output matrix, tied or its own.
#include "nn/head.h"

#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace llmcore {

Head::Head(const ParamBuilder& builder, const Config& config, const Param& tokens)
    : scale_(config.head_scale) {
  weight_ = config.tie_embeddings
                ? tokens
                : builder.matrix("weight", config.vocab_size, config.hidden_size, config.init_std);
  if (config.head_bias) bias_ = builder.zeros("bias", config.vocab_size);
}

void Head::logits(const Context& context, const Tensor& hidden, const Tensor& logits) const {
  matmul(context, {.a = hidden,
                   .b = weight_.weight(),
                   .c = logits,
                   .transpose_b = true,
                   .bias = bias_.weight()});
  if (scale_ != 1.0f) scale(context, {.factor = scale_, .x = logits, .y = logits});
}

void Head::losses(const Context& context, const Tensor& hidden, const Batch& batch,
                  const Tensor& losses) const {
  linear_cross_entropy(context, {.hidden = hidden,
                                 .weight = weight_.weight(),
                                 .bias = bias_.weight(),
                                 .targets = batch.targets,
                                 .label_smoothing = batch.label_smoothing,
                                 .logit_scale = scale_,
                                 .losses = losses});
}

void Head::losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                                const Tensor& row_scale, const Tensor& losses) const {
  linear_cross_entropy(context, {.hidden = hidden,
                                 .weight = weight_.weight(),
                                 .bias = bias_.weight(),
                                 .targets = batch.targets,
                                 .label_smoothing = batch.label_smoothing,
                                 .logit_scale = scale_,
                                 .losses = losses,
                                 .row_scale = row_scale,
                                 .dhidden = hidden,
                                 .dweight = weight_.accumulating_gradient(context),
                                 .dbias = bias_.accumulating_gradient(context)});
}

}  // namespace llmcore
