// Multi-head cross-attention: queries from the decoder, keys and values from the encoder's output.
#pragma once

#include "nn/config.h"
#include "nn/linear.h"
#include "nn/sequences.h"
#include "ops/attention.h"

namespace llmcore {

class CrossAttention {
 public:
  struct Saved {
    Tensor q;            // [N, H D]
    Tensor keys_values;  // [B * S, 2 Hkv D], k and v side by side
    Tensor mixed;        // [N, H D]
    Tensor softmax;      // [B, H, T, 2]
  };

  CrossAttention(const ParamBuilder& builder, const Config& config, uint32_t site, int64_t layer);

  // y = what `tail` makes of the output projection; both [N, C]. With `norm`, of x normalised.
  // Looks at sequences.memory.
  void forward(const Context& context, const Sequences& sequences, const Tensor& x, const Tensor& y,
               Saved& saved, const MatmulArgs& tail, const RowNorm& norm = {}) const;

  // From dy and the input x of the forward pass: dx = or, with accumulate, dx += its gradient; adds
  // that of the memory to its own.
  void backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                const Tensor& x, const Saved& saved, const Tensor& dx, bool accumulate) const;

  // Keys and values of an encoder's output [B * S, C], for many passes over them; Stack::remember.
  void remember(const Context& context, const Tensor& hidden, const Tensor& lengths,
                const Tensor& rows, const LayerCache& to) const;

 private:
  AttentionArgs arguments(const Context& context, const Sequences& sequences,
                          const Saved& saved) const;

  const Config& config_;
  int64_t layer_;
  uint32_t site_;
  Linear q_, kv_, out_;
};

}  // namespace llmcore
