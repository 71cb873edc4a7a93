// Block: one layer of a stack, sublayers around self-attention and feed-forward.
#pragma once

#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/sublayer.h"

namespace llmcore {

class Block {
 public:
  struct Saved {
    Sublayer<SelfAttention>::Saved attention;
    Sublayer<FeedForward>::Saved feed_forward;
  };

  Block(const ParamBuilder& builder, const Config& config, int64_t layer)
      : self_attention_(builder.scope("self_attention"), config, sublayer_site(layer, 0)),
        feed_forward_(builder.scope("feed_forward"), config, sublayer_site(layer, 2)) {}

  // x, middle and y are [N, C]; all may be the same where nothing is saved for backward.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x,
               const Tensor& middle, const Tensor& y, Saved& saved) const {
    self_attention_.forward(context, sequences, x, middle, saved.attention);
    feed_forward_.forward(context, sequences, middle, y, saved.feed_forward);
  }

  // Turns the gradient of y into the gradient of x, in place.
  void backward(const Context& context, const Sequences& sequences, const Saved& saved,
                const Tensor& gradient) const {
    feed_forward_.backward(context, sequences, saved.feed_forward, gradient);
    self_attention_.backward(context, sequences, saved.attention, gradient);
  }

 private:
  Sublayer<SelfAttention> self_attention_;
  Sublayer<FeedForward> feed_forward_;
};

}  // namespace llmcore
