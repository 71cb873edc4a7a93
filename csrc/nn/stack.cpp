// Runs the embedding and the blocks, forwards and backwards.
#include "nn/stack.h"

namespace llmcore {
namespace {

Tensor keep_like(const Context& context, const Tensor& x) {
  return context.keep(x.dim(0), x.dim(1));
}

Tensor flat_positions(const Sequences& sequences) {
  return reshaped(sequences.positions, sequences.rows());
}

}  // namespace

Stack::Stack(ParamStore& params, const Config& config, const Options& options)
    : causal_(options.causal),
      embedding_(ParamBuilder(params, options.embedding_name), config, options.embedding) {
  const ParamBuilder builder(params, options.name);
  if (config.positions == PositionKind::kRelative)
    relative_bias_.emplace(builder.scope("relative_bias"), config, options.causal);
  blocks_.reserve(options.layers);
  for (int64_t layer = 0; layer < options.layers; ++layer)
    blocks_.emplace_back(builder.scope("layers." + std::to_string(layer)), config, layer,
                         options.first_number + layer, options.cross);
  if (config.final_norm) final_norm_.emplace(builder.scope("norm"), config);
}

void Stack::prepare(const Context& context, Sequences& sequences) const {
  if (relative_bias_) relative_bias_->prepare(context, sequences);
}

Tensor Stack::forward(const Context& context, const StackInput& input, Sequences& sequences,
                      bool recompute, Saved& saved) const {
  Tensor stream = context.keep(sequences.rows(), embedding_.tokens().weight().dim(1));
  embedding_.forward(context, input.ids, flat_positions(sequences), input.types, stream,
                     saved.embedding);
  if (relative_bias_) relative_bias_->forward(context, sequences);
  saved.inputs.assign(blocks_.size(), {});
  saved.blocks.assign(blocks_.size(), {});
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Tensor output = keep_like(context, stream);
    saved.inputs[layer] = stream;
    const Arena::KeepMark mark = context.arena->keep_mark();
    blocks_[layer].forward(context, sequences, stream, output, saved.blocks[layer]);
    if (recompute) context.arena->release_keep(mark);
    stream = output;
  }
  if (!final_norm_) return stream;
  const Tensor output = keep_like(context, stream);
  final_norm_->forward(context, stream, output, saved.final_norm);
  return output;
}

void Stack::backward(const Context& context, Sequences& sequences, bool recompute, Saved& saved,
                     const Tensor& gradient) const {
  KeepScope all(*context.arena);
  if (relative_bias_) relative_bias_->begin_backward(context, sequences, saved.bias);
  if (final_norm_) final_norm_->backward(context, gradient, saved.final_norm, gradient, false);
  for (size_t layer = blocks_.size(); layer-- > 0;) {
    KeepScope scope(*context.arena);
    if (recompute)
      blocks_[layer].forward(context, sequences, saved.inputs[layer], keep_like(context, gradient),
                             saved.blocks[layer]);
    blocks_[layer].backward(context, sequences, saved.blocks[layer], gradient);
  }
  if (relative_bias_) relative_bias_->finish_backward(context, sequences, saved.bias);
  embedding_.backward(context, saved.embedding, gradient);
}

Tensor Stack::infer(const Context& context, const StackInput& input, Sequences& sequences) const {
  const Tensor stream = context.keep(sequences.rows(), embedding_.tokens().weight().dim(1));
  Saved unused;
  if (relative_bias_) relative_bias_->forward(context, sequences);
  {
    KeepScope scope(*context.arena);
    embedding_.forward(context, input.ids, flat_positions(sequences), input.types, stream,
                       unused.embedding);
  }
  for (const Block& block : blocks_) {
    KeepScope scope(*context.arena);
    block.infer(context, sequences, stream);
  }
  if (final_norm_) {
    KeepScope scope(*context.arena);
    final_norm_->forward(context, stream, stream, unused.final_norm);
  }
  return stream;
}

void Stack::remember(const Context& context, const Tensor& hidden, const Tensor& lengths,
                     const Tensor& rows, const std::vector<LayerCache>& to) const {
  for (size_t layer = 0; layer < blocks_.size(); ++layer)
    blocks_[layer].cross_attention().remember(context, hidden, lengths, rows, to[layer]);
}

}  // namespace llmcore
