// Multi-head self-attention: the projection to q, k and v, rotary positions, mixing, and out.
#pragma once

#include "nn/config.h"
#include "nn/linear.h"
#include "nn/sequences.h"
#include "ops/attention.h"

namespace llmcore {

class SelfAttention {
 public:
  struct Saved {
    Tensor x;      // [N, C]
    Tensor qkv;    // [N, (H + 2 Hkv) D], q and k rotated
    Tensor mixed;  // [N, H D]
    Tensor lse;    // [B, H, T]
  };

  SelfAttention(const ParamBuilder& builder, const Config& config, uint32_t site);

  // y = what `tail` makes of the output projection; both [N, C].
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved, const MatmulArgs& tail) const;

  // dx = or, with accumulate, dx += the gradient of x.
  void backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                const Saved& saved, const Tensor& dx, bool accumulate) const;

 private:
  void rotate(const Context& context, const Sequences& sequences, const Tensor& qkv,
              bool inverse) const;
  AttentionArgs arguments(const Context& context, const Sequences& sequences,
                          const Tensor& qkv) const;
  void use_cache(const Sequences& sequences, const Tensor& qkv, AttentionArgs& args) const;
  HeadView part(const Sequences& sequences, const Tensor& qkv, int64_t first_head) const;

  const Config& config_;
  uint32_t site_;
  Linear qkv_, out_;
};

}  // namespace llmcore
