// Stack: blocks and the final norm. Encoder, decoder and decoder-only models are all one Stack.
#pragma once

#include <optional>
#include <vector>

#include "nn/block.h"

namespace llmcore {

class Stack {
 public:
  struct Saved {
    std::vector<Tensor> inputs;        // [L] of [N, C], what each block was given
    std::vector<Block::Saved> blocks;  // [L]; with recompute made again during backward
    Norm::Saved final_norm;
  };

  Stack(const ParamBuilder& builder, const Config& config, int64_t num_layers);

  // Forward for training: everything backward needs is kept in the arena. Returns [N, C].
  Tensor forward(const Context& context, const Sequences& sequences, const Tensor& x,
                 bool recompute, Saved& saved) const;

  // Turns the gradient of the output into the gradient of x, in place.
  void backward(const Context& context, const Sequences& sequences, bool recompute, Saved& saved,
                const Tensor& gradient) const;

  // Forward for inference: x [N, C] becomes the output in place, nothing else stays in the arena.
  void infer(const Context& context, const Sequences& sequences, const Tensor& x) const;

 private:
  std::vector<Block> blocks_;
  std::optional<Norm> final_norm_;
};

}  // namespace llmcore
