// Stack: embedding, blocks and the final norm. Encoder, decoder and decoder-only models are all one
// Stack.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nn/block.h"
#include "nn/embedding.h"
#include "nn/relative_bias.h"

namespace llmcore {

// What the rows of a pass are: ids [N] and types [N] (empty: all 0), int32.
struct StackInput {
  Tensor ids, types;
};

class Stack {
 public:
  struct Options {
    std::string name;  // "encoder" or "decoder"
    int64_t layers;
    int64_t first_number;  // of its layers within the model: it numbers dropout
    bool causal;
    bool cross;                  // whether its blocks look at an encoder's output
    std::string embedding_name;  // where its part of the embedding is
    Embedding::Options embedding;
  };
  struct Saved {
    Embedding::Saved embedding;
    RelativeBias::Saved bias;
    std::vector<Tensor> inputs;        // [L] of [N, C], what each block was given
    std::vector<Block::Saved> blocks;  // [L]; with recompute made again during backward
    Norm::Saved final_norm;
  };

  Stack(ParamStore& params, const Config& config, const Options& options);

  bool causal() const { return causal_; }

  // Writes what a pass wants to know of its rows beside what they are; inputs, not uploaded yet.
  void prepare(const Context& context, Sequences& sequences) const;

  // Forward for training: everything backward needs is kept in the arena. Returns [N, C].
  Tensor forward(const Context& context, const StackInput& input, Sequences& sequences,
                 bool recompute, Saved& saved) const;

  // From the gradient of the output [N, C], which is overwritten, to those of all parameters.
  void backward(const Context& context, Sequences& sequences, bool recompute, Saved& saved,
                const Tensor& gradient) const;

  // Forward for inference: [N, C] in the arena's keep end, with little else.
  Tensor infer(const Context& context, const StackInput& input, Sequences& sequences) const;

  // Keys and values of every block's cross-attention from an encoder's output [B * S, C], of which
  // lengths [B] are real: those of source b go to row rows[b] of `to` [L].
  void remember(const Context& context, const Tensor& hidden, const Tensor& lengths,
                const Tensor& rows, const std::vector<LayerCache>& to) const;

 private:
  bool causal_;
  Embedding embedding_;
  std::optional<RelativeBias> relative_bias_;
  std::vector<Block> blocks_;
  std::optional<Norm> final_norm_;
};

}  // namespace llmcore
