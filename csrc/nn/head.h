// Heads: from hidden states to logits over the vocabulary or over labels, or straight to the loss
// without ever holding all logits.
#pragma once

#include <optional>

#include "nn/batch.h"
#include "nn/config.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/params.h"

namespace llmcore {

// What turns hidden states [R, C] into those that an output matrix reads, and back.
class HeadTransform {
 public:
  struct Saved {
    Tensor x;          // [R, C]
    Tensor linear;     // [R, C] before the activation
    Tensor activated;  // [R, C]
    Norm::Saved norm;
  };

  // `linear` names the matrix below `builder`; its norm, if there is one, is below that.
  HeadTransform(const ParamBuilder& builder, const Config& config, const char* linear,
                Activation activation, bool norm);

  // [R, C] in the arena's keep end.
  Tensor forward(const Context& context, const Tensor& x, Saved& saved) const;
  // dx from dy, which is overwritten; dx may be saved.x.
  void backward(const Context& context, const Saved& saved, const Tensor& dy,
                const Tensor& dx) const;

 private:
  Activation activation_;
  Linear linear_;
  std::optional<Norm> norm_;
};

// An output matrix with the loss fused to it: [out, C], [out] or no bias.
struct OutputMatrix {
  Param weight, bias;
  float scale = 1.0f;

  void logits(const Context& context, const Tensor& hidden, const Tensor& logits) const;
  void losses(const Context& context, const Tensor& hidden, const Batch& batch,
              const Tensor& losses) const;
  // The same with gradients: `hidden` becomes d(sum_r row_scale_r loss_r)/d(hidden).
  void losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                            const Tensor& row_scale, const Tensor& losses) const;
};

// Over the vocabulary: its own matrix or the embedding's, after a transform where the config says
// so (Devlin et al. 2019).
class Head {
 public:
  // `tokens` is the embedding table a tied head shares.
  Head(const ParamBuilder& builder, const Config& config, const Param& tokens);

  // logits [R, V], or losses [R] against targets [R], of hidden [R, C].
  void logits(const Context& context, const Tensor& hidden, const Tensor& logits) const;
  void losses(const Context& context, const Tensor& hidden, const Batch& batch,
              const Tensor& losses) const;
  void losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                            const Tensor& row_scale, const Tensor& losses) const;

 private:
  OutputMatrix output_;
  std::optional<HeadTransform> transform_;
};

// Over labels: one vector a sequence, after a pooler where the config says so.
class Classifier {
 public:
  Classifier(ParamStore& params, const Config& config);

  // What the classifier reads of hidden [R, C]: itself, or what the pooler makes of it.
  Tensor pool(const Context& context, const Tensor& hidden) const;

  void logits(const Context& context, const Tensor& hidden, const Tensor& logits) const;
  void losses(const Context& context, const Tensor& hidden, const Batch& batch,
              const Tensor& losses) const;
  void losses_and_gradients(const Context& context, const Tensor& hidden, const Batch& batch,
                            const Tensor& row_scale, const Tensor& losses) const;

 private:
  float dropout_;
  std::optional<HeadTransform> pooler_;
  OutputMatrix output_;
};

}  // namespace llmcore
