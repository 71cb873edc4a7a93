// Runs the blocks, forwards and backwards.
#include "nn/stack.h"

#include <string>

namespace llmcore {
namespace {

Tensor keep_like(const Context& context, const Tensor& x) {
  return context.arena->keep(DType::kFloat32, x.dim(0), x.dim(1));
}

}  // namespace

Stack::Stack(const ParamBuilder& builder, const Config& config, int64_t num_layers) {
  blocks_.reserve(num_layers);
  for (int64_t layer = 0; layer < num_layers; ++layer)
    blocks_.emplace_back(builder.scope("layers." + std::to_string(layer)), config, layer);
  if (config.final_norm) final_norm_.emplace(builder.scope("norm"), config);
}

Tensor Stack::forward(const Context& context, const Sequences& sequences, const Tensor& x,
                      bool recompute, Saved& saved) const {
  saved.inputs.assign(blocks_.size(), {});
  saved.blocks.assign(blocks_.size(), {});
  Tensor stream = x;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Tensor output = keep_like(context, x);
    saved.inputs[layer] = stream;
    const int64_t mark = context.arena->keep_mark();
    const Tensor middle = keep_like(context, x);
    blocks_[layer].forward(context, sequences, stream, middle, output, saved.blocks[layer]);
    if (recompute) context.arena->release_keep(mark);
    stream = output;
  }
  if (!final_norm_) return stream;
  const Tensor output = keep_like(context, x);
  final_norm_->forward(context, stream, output, saved.final_norm);
  return output;
}

void Stack::backward(const Context& context, const Sequences& sequences, bool recompute,
                     Saved& saved, const Tensor& gradient) const {
  if (final_norm_) final_norm_->backward(context, gradient, saved.final_norm, gradient, false);
  for (size_t layer = blocks_.size(); layer-- > 0;) {
    KeepScope scope(*context.arena);
    if (recompute) {
      const Tensor middle = keep_like(context, gradient), output = keep_like(context, gradient);
      blocks_[layer].forward(context, sequences, saved.inputs[layer], middle, output,
                             saved.blocks[layer]);
    }
    blocks_[layer].backward(context, sequences, saved.blocks[layer], gradient);
  }
}

void Stack::infer(const Context& context, const Sequences& sequences, const Tensor& x) const {
  for (const Block& block : blocks_) {
    KeepScope scope(*context.arena);
    Block::Saved unused;
    block.forward(context, sequences, x, x, x, unused);
  }
  if (!final_norm_) return;
  KeepScope scope(*context.arena);
  Norm::Saved unused;
  final_norm_->forward(context, x, x, unused);
}

}  // namespace llmcore
