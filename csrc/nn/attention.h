// Multi-head self-attention: the projection to q, k and v, norms of their heads, rotary positions,
// mixing, and out.
#pragma once

#include <optional>

#include "nn/config.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/sequences.h"
#include "ops/attention.h"

namespace llmcore {

class SelfAttention {
 public:
  struct Saved {
    Tensor qkv;                  // [N, (H + 2 Hkv) D], q and k normalised and rotated
    Norm::Saved q_norm, k_norm;  // of [N * H, D] and [N * Hkv, D]; with qk_norm
    Tensor mixed;                // [N, H D]
    Tensor softmax;              // [B, H, T, 2]
  };

  // `layer` counts within the stack; `site` numbers its dropout.
  SelfAttention(const ParamBuilder& builder, const Config& config, uint32_t site, int64_t layer);

  // y = what `tail` makes of the output projection; both [N, C]. With `norm`, of x normalised.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved, const MatmulArgs& tail, const RowNorm& norm = {}) const;

  // From dy and the input x of the forward pass: dx = or, with accumulate, dx += its gradient.
  void backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                const Tensor& x, const Saved& saved, const Tensor& dx, bool accumulate) const;

 private:
  void rotate(const Context& context, const Sequences& sequences, const Tensor& qkv,
              bool inverse) const;
  void normalise(const Context& context, const Tensor& qkv, Saved& saved) const;
  void normalise_backward(const Context& context, const Tensor& dqkv, const Saved& saved) const;
  AttentionArgs arguments(const Context& context, const Sequences& sequences,
                          const Tensor& qkv) const;

  const Config& config_;
  int64_t layer_;
  uint32_t site_;
  Linear qkv_;
  std::optional<Norm> q_norm_, k_norm_;
  Linear out_;
};

}  // namespace llmcore
