// Head: hidden states to logits, or straight to the loss without ever holding all logits.
#pragma once

#include "nn/batch.h"
#include "nn/config.h"
#include "nn/params.h"

namespace llmcore {

class Head {
 public:
  // `tokens` is the embedding table a tied head shares.
  Head(const ParamBuilder& builder, const Config& config, const Param& tokens);

  // logits [R, V] of hidden [R, C].
  void logits(const Context& context, const Tensor& hidden, const Tensor& logits) const;

  // losses [R] of hidden [R, C] against targets [R].
  void losses(const Context& context, const Tensor& hidden, const Batch& batch,
              const Tensor& losses) const;

  // The same with gradients: `hidden` becomes d(sum_r row_scale_r loss_r)/d(hidden).
  void losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                            const Tensor& row_scale, const Tensor& losses) const;

 private:
  float scale_;
  Param weight_, bias_;
};

}  // namespace llmcore
