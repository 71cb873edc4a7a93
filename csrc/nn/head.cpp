// Output matrices, and what stands before them.
#include "nn/head.h"

#include "core/beside.h"
#include "nn/sequences.h"
#include "ops/activation.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace llmcore {
namespace {

Tensor keep_like(const Context& context, const Tensor& x) {
  return context.keep(x.dim(0), x.dim(1));
}

std::optional<HeadTransform> make_pooler(ParamStore& params, const Config& config) {
  if (!config.pooler) return std::nullopt;
  return HeadTransform(ParamBuilder(params), config, "pooler", Activation::kTanh, false);
}

}  // namespace

HeadTransform::HeadTransform(const ParamBuilder& builder, const Config& config, const char* linear,
                             Activation activation, bool norm)
    : activation_(activation),
      linear_(builder, {{linear, config.hidden_size}}, config.hidden_size, true, config.init_std) {
  if (norm) norm_.emplace(builder.scope(linear).scope("norm"), config);
}

Tensor HeadTransform::forward(const Context& context, const Tensor& x, Saved& saved) const {
  saved.x = x;
  saved.linear = keep_like(context, x);
  saved.activated = keep_like(context, x);
  linear_.forward(context, x, saved.activated,
                  {.pre_activation = saved.linear, .activation = activation_});
  if (!norm_) return saved.activated;
  const Tensor y = keep_like(context, x);
  norm_->forward(context, saved.activated, y, saved.norm);
  return y;
}

void HeadTransform::backward(const Context& context, const Saved& saved, const Tensor& dy,
                             const Tensor& dx) const {
  if (norm_) norm_->backward(context, dy, saved.norm, dy, false);
  activation_backward(context, {.activation = activation_, .dy = dy, .x = saved.linear, .dx = dy});
  linear_.backward(context, dy, saved.x, dx);
  join(context);
}

void OutputMatrix::logits(const Context& context, const Tensor& hidden,
                          const Tensor& logits) const {
  matmul(context, {.a = hidden,
                   .b = weight.operand(context),
                   .c = logits,
                   .transpose_b = true,
                   .bias = bias.weight()});
  if (scale != 1.0f) llmcore::scale(context, {.factor = scale, .x = logits, .y = logits});
}

void OutputMatrix::losses(const Context& context, const Tensor& hidden, const Batch& batch,
                          const Tensor& losses) const {
  linear_cross_entropy(context, {.hidden = hidden,
                                 .weight = weight.operand(context),
                                 .bias = bias.weight(),
                                 .targets = batch.targets,
                                 .label_smoothing = batch.label_smoothing,
                                 .logit_scale = scale,
                                 .losses = losses});
}

void OutputMatrix::losses_and_gradients(const Context& context, const Tensor& hidden,
                                        const Batch& batch, const Tensor& row_scale,
                                        const Tensor& losses) const {
  linear_cross_entropy(context, {.hidden = hidden,
                                 .weight = weight.operand(context),
                                 .bias = bias.weight(),
                                 .targets = batch.targets,
                                 .label_smoothing = batch.label_smoothing,
                                 .logit_scale = scale,
                                 .losses = losses,
                                 .row_scale = row_scale,
                                 .dhidden = hidden,
                                 .dweight = weight.gradient(),
                                 .overwrite = batch.targets.numel() > 0 && weight.first_write(),
                                 .dbias = bias.accumulating_gradient(context)});
}

Head::Head(const ParamBuilder& builder, const Config& config, const Param& tokens) {
  output_.scale = config.head_scale;
  output_.weight = tokens;
  if (!config.tie_embeddings) {
    output_.weight =
        builder.matrix("weight", config.vocab_size, config.hidden_size, config.init_std);
    output_.weight.declare_packable();
  }
  if (config.head_bias) output_.bias = builder.zeros("bias", config.vocab_size);
  if (config.head_transform)
    transform_.emplace(builder, config, "transform", config.activation, true);
}

void Head::logits(const Context& context, const Tensor& hidden, const Tensor& logits) const {
  KeepScope scope(*context.arena);
  HeadTransform::Saved unused;
  output_.logits(context, transform_ ? transform_->forward(context, hidden, unused) : hidden,
                 logits);
}

void Head::losses(const Context& context, const Tensor& hidden, const Batch& batch,
                  const Tensor& losses) const {
  KeepScope scope(*context.arena);
  HeadTransform::Saved unused;
  output_.losses(context, transform_ ? transform_->forward(context, hidden, unused) : hidden, batch,
                 losses);
}

void Head::losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                                const Tensor& row_scale, const Tensor& losses) const {
  if (!transform_) return output_.losses_and_gradients(context, hidden, batch, row_scale, losses);
  KeepScope scope(*context.arena);
  HeadTransform::Saved saved;
  const Tensor transformed = transform_->forward(context, hidden, saved);
  output_.losses_and_gradients(context, transformed, batch, row_scale, losses);
  transform_->backward(context, saved, transformed, hidden);
}

Classifier::Classifier(ParamStore& params, const Config& config)
    : dropout_(config.residual_dropout), pooler_(make_pooler(params, config)) {
  if (config.num_labels == 0) return;
  const ParamBuilder builder(params, "classifier");
  output_.weight = builder.matrix("weight", config.num_labels, config.hidden_size, config.init_std);
  output_.bias = builder.zeros("bias", config.num_labels);
}

Tensor Classifier::pool(const Context& context, const Tensor& hidden) const {
  if (!pooler_) return hidden;
  HeadTransform::Saved unused;
  return pooler_->forward(context, hidden, unused);
}

void Classifier::logits(const Context& context, const Tensor& hidden, const Tensor& logits) const {
  KeepScope scope(*context.arena);
  output_.logits(context, pool(context, hidden), logits);
}

void Classifier::losses(const Context& context, const Tensor& hidden, const Batch& batch,
                        const Tensor& losses) const {
  KeepScope scope(*context.arena);
  output_.losses(context, pool(context, hidden), batch, losses);
}

void Classifier::losses_and_gradients(const Context& context, const Tensor& hidden,
                                      const Batch& batch, const Tensor& row_scale,
                                      const Tensor& losses) const {
  KeepScope scope(*context.arena);
  HeadTransform::Saved saved;
  const Tensor pooled = pooler_ ? pooler_->forward(context, hidden, saved) : hidden;
  const Dropout dropped = context.dropout(dropout_, kClassifierSite);
  const DropoutArgs mask{.dropout = dropped, .x = pooled, .y = pooled};
  if (dropped.p > 0.0f) dropout(context, mask);
  output_.losses_and_gradients(context, pooled, batch, row_scale, losses);
  if (dropped.p > 0.0f) dropout(context, mask);
  if (pooler_) pooler_->backward(context, saved, pooled, hidden);
}

}  // namespace llmcore
