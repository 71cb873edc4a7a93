// Sublayer: the one place for norm placement, dropout and the residual connection.
//
//   pre   y = x + dropout(branch(norm(x)))          (Radford et al. 2019)
//   post  y = norm(x + dropout(branch(x)))          (Vaswani et al. 2017)
//
// A Branch computes y = residual + dropout(f(input)), the last step fused into its last matrix
// product, and where nothing is saved a norm of its input into the first:
//   void forward(context, sequences, input, output, saved, tail, norm = {});
//   void backward(context, sequences, dout, input, saved, dinput, accumulate);
// Until its backward has been joined, what the branch took as scratch is in use.
#pragma once

#include "core/beside.h"
#include "nn/norm.h"
#include "nn/sequences.h"
#include "ops/elementwise.h"

namespace llmcore {

template <class Branch>
class Sublayer {
 public:
  struct Saved {
    Tensor x;  // [N, C]
    Norm::Saved norm;
    typename Branch::Saved branch;
  };

  // `more` is what the branch's constructor wants besides.
  template <class... More>
  Sublayer(const ParamBuilder& builder, const Config& config, uint32_t site, More... more)
      : norm_(builder.scope("norm"), config),
        branch_(builder, config, site, more...),
        placement_(config.norm_placement),
        residual_dropout_(config.residual_dropout),
        site_(site) {}

  // x and y are [N, C]; y may be x where nothing is saved for backward.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved) const {
    const MatmulArgs tail = tail_of(context, x);
    saved.x = x;
    if (placement_ == NormPlacement::kPre) {
      ScratchScope scope(*context.arena);
      const Tensor normed = context.scratch(x.dim(0), x.dim(1));
      norm_.forward(context, x, normed, saved.norm);
      branch_.forward(context, sequences, normed, y, saved.branch, tail);
    } else {
      const Tensor sum = context.keep(x.dim(0), x.dim(1));
      branch_.forward(context, sequences, x, sum, saved.branch, tail);
      norm_.forward(context, sum, y, saved.norm);
    }
  }

  // The same in place, where nothing is saved for backward: a norm ahead is part of the product
  // that follows it.
  void infer(const Context& context, const Sequences& sequences, const Tensor& x) const {
    Saved unused;
    if (placement_ == NormPlacement::kPost) return forward(context, sequences, x, x, unused);
    branch_.forward(context, sequences, x, x, unused.branch, tail_of(context, x), norm_.of_rows());
  }

  // Turns the gradient of y into the gradient of x, in place.
  void backward(const Context& context, const Sequences& sequences, const Saved& saved,
                const Tensor& gradient) const {
    ScratchScope scope(*context.arena);
    if (placement_ == NormPlacement::kPre) {
      const auto like_gradient = [&] { return context.scratch(gradient.dim(0), gradient.dim(1)); };
      const Tensor normed = like_gradient(), dnormed = like_gradient();
      norm_.forward_again(context, saved.norm, normed);  // cheaper than to keep it
      branch_.backward(context, sequences, through_dropout(context, gradient), normed, saved.branch,
                       dnormed, false);
      join(context);
      norm_.backward(context, dnormed, saved.norm, gradient, true);
    } else {
      norm_.backward(context, gradient, saved.norm, gradient, false);
      branch_.backward(context, sequences, through_dropout(context, gradient), saved.x,
                       saved.branch, gradient, true);
      join(context);
    }
  }

  const Branch& branch() const { return branch_; }

 private:
  MatmulArgs tail_of(const Context& context, const Tensor& x) const {
    return {.dropout = dropout(context), .residual = x};
  }

  Dropout dropout(const Context& context) const {
    return context.dropout(residual_dropout_, site_);
  }

  // The branch's share of the gradient: masked as its output was.
  Tensor through_dropout(const Context& context, const Tensor& gradient) const {
    if (dropout(context).p == 0.0f) return gradient;
    const Tensor masked = context.scratch(gradient.dim(0), gradient.dim(1));
    llmcore::dropout(context, {.dropout = dropout(context), .x = gradient, .y = masked});
    return masked;
  }

  Norm norm_;
  Branch branch_;
  NormPlacement placement_;
  float residual_dropout_;
  uint32_t site_;
};

}  // namespace llmcore
