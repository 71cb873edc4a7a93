// Feed-forward network: down(act(up(x))), or gated, down(act(gate(x)) * up(x)) (Shazeer 2020).
#pragma once

#include "nn/config.h"
#include "nn/linear.h"
#include "nn/sequences.h"

namespace llmcore {

class FeedForward {
 public:
  struct Saved {
    Tensor up;  // [N, F] before the activation; gated: [N, 2F], gate then up
  };

  FeedForward(const ParamBuilder& builder, const Config& config, uint32_t site);

  // y = what `tail` makes of down's output; both [N, C]. With `norm`, of x normalised.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved, const MatmulArgs& tail, const RowNorm& norm = {}) const;

  // From dy and the input x of the forward pass: dx = or, with accumulate, dx += its gradient.
  void backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                const Tensor& x, const Saved& saved, const Tensor& dx, bool accumulate) const;

 private:
  // The halves of a gated [N, 2F] matrix.
  Tensor half(const Tensor& both, int which) const;
  // What goes into down, from what is saved: backward computes it again rather than keep it.
  void activate(const Context& context, const Tensor& up, const Tensor& hidden) const;

  const Config& config_;
  uint32_t site_;
  Linear up_, down_;
};

}  // namespace llmcore
