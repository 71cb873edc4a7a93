// Block: one layer of a stack, sublayers around self-attention, cross-attention in a decoder beside
// an encoder, and feed-forward.
#pragma once

#include <optional>

#include "nn/attention.h"
#include "nn/cross_attention.h"
#include "nn/feed_forward.h"
#include "nn/sublayer.h"

namespace llmcore {

class Block {
 public:
  struct Saved {
    Sublayer<SelfAttention>::Saved attention;
    Sublayer<CrossAttention>::Saved cross;
    Sublayer<FeedForward>::Saved feed_forward;
  };

  // `layer` counts within the stack, `number` within the model: it numbers dropout.
  Block(const ParamBuilder& builder, const Config& config, int64_t layer, int64_t number,
        bool cross)
      : self_attention_(builder.scope("self_attention"), config, sublayer_site(number, 0), layer),
        cross_attention_(make_cross(builder, config, layer, number, cross)),
        feed_forward_(builder.scope("feed_forward"), config, sublayer_site(number, 2)) {}

  // From x to y, both [N, C], with what backward needs kept in the arena.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved) const {
    const auto between = [&] { return context.keep(x.dim(0), x.dim(1)); };
    const Tensor attended = between();
    self_attention_.forward(context, sequences, x, attended, saved.attention);
    Tensor crossed = attended;
    if (cross_attention_) {
      crossed = between();
      cross_attention_->forward(context, sequences, attended, crossed, saved.cross);
    }
    feed_forward_.forward(context, sequences, crossed, y, saved.feed_forward);
  }

  // The same in place, where nothing is saved for backward.
  void infer(const Context& context, const Sequences& sequences, const Tensor& x) const {
    self_attention_.infer(context, sequences, x);
    if (cross_attention_) cross_attention_->infer(context, sequences, x);
    feed_forward_.infer(context, sequences, x);
  }

  // Turns the gradient of y into the gradient of x, in place.
  void backward(const Context& context, const Sequences& sequences, const Saved& saved,
                const Tensor& gradient) const {
    feed_forward_.backward(context, sequences, saved.feed_forward, gradient);
    if (cross_attention_) cross_attention_->backward(context, sequences, saved.cross, gradient);
    self_attention_.backward(context, sequences, saved.attention, gradient);
  }

  const CrossAttention& cross_attention() const { return cross_attention_->branch(); }

 private:
  static std::optional<Sublayer<CrossAttention>> make_cross(const ParamBuilder& builder,
                                                            const Config& config, int64_t layer,
                                                            int64_t number, bool wanted) {
    if (!wanted) return std::nullopt;
    return Sublayer<CrossAttention>(builder.scope("cross_attention"), config,
                                    sublayer_site(number, 1), layer);
  }

  Sublayer<SelfAttention> self_attention_;
  std::optional<Sublayer<CrossAttention>> cross_attention_;
  Sublayer<FeedForward> feed_forward_;
};

}  // namespace llmcore
