// Token, position and type tables.
#include "nn/embedding.h"

#include <cmath>

#include "core/queue.h"
#include "nn/sequences.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"

namespace llmcore {
namespace {

// Vaswani et al. 2017, section 3.5, sines first and cosines second as Marian and fairseq lay them
// out.
Buffer sinusoid_table(int64_t positions, int64_t width) {
  Buffer buffer(positions * width * static_cast<int64_t>(sizeof(float)));
  float* table = static_cast<float*>(buffer.data());
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < width / 2; ++i) {
      const double angle =
          static_cast<double>(p) /
          std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(width));
      table[p * width + i] = static_cast<float>(std::sin(angle));
      table[p * width + width / 2 + i] = static_cast<float>(std::cos(angle));
    }
  return buffer;
}

}  // namespace

Embedding::Embedding(const ParamBuilder& builder, const Config& config, const Options& options)
    : config_(config), site_(options.site), tokens_(options.tokens) {
  const int64_t width = config.hidden_size;
  if (config.positions == PositionKind::kLearned)
    positions_ = builder.matrix("positions.weight", config.max_positions + config.position_offset,
                                width, config.init_std);
  if (config.positions == PositionKind::kSinusoidal)
    sinusoids_ = moved_to(builder.device(), sinusoid_table(config.max_positions, width));
  if (options.types && config.type_vocab_size > 0)
    types_ = builder.matrix("types.weight", config.type_vocab_size, width, config.init_std);
  if (config.embedding_norm) norm_.emplace(builder.scope(options.norm_name), config);
}

Tensor Embedding::position_table() const {
  if (positions_) return positions_.weight();
  if (sinusoids_.data() == nullptr) return {};
  return f32_view(sinusoids_.data(), config_.max_positions, config_.hidden_size);
}

void Embedding::forward(const Context& context, const Tensor& ids, const Tensor& positions,
                        const Tensor& types, const Tensor& out, Saved& saved) const {
  saved.ids = ids;
  if (types_) saved.type_ids = types;
  const Tensor table = position_table();
  if (table) saved.position_ids = positions;
  // Where a norm follows, dropout comes after it (Devlin et al. 2019).
  const Dropout dropped = context.dropout(config_.embedding_dropout, site_);
  const Tensor sum = norm_ ? context.keep(out.dim(0), out.dim(1)) : out;
  embedding_forward(context, {.ids = ids,
                              .table = tokens_.weight(),
                              .scale = config_.embedding_scale,
                              .positions = table,
                              .position_ids = saved.position_ids,
                              .first_position = config_.position_offset,
                              .types = types_.weight(),
                              .type_ids = saved.type_ids,
                              .dropout = norm_ ? Dropout{} : dropped,
                              .out = sum});
  if (!norm_) return;
  norm_->forward(context, sum, out, saved.norm);
  if (dropped.p > 0.0f) dropout(context, {.dropout = dropped, .x = out, .y = out});
}

void Embedding::backward(const Context& context, const Saved& saved, const Tensor& gradient) const {
  const Dropout dropped = context.dropout(config_.embedding_dropout, site_);
  if (norm_) {
    if (dropped.p > 0.0f) dropout(context, {.dropout = dropped, .x = gradient, .y = gradient});
    norm_->backward(context, gradient, saved.norm, gradient, false);
  }
  embedding_backward(context, {.ids = saved.ids,
                               .scale = config_.embedding_scale,
                               .position_ids = positions_ ? saved.position_ids : Tensor{},
                               .first_position = config_.position_offset,
                               .type_ids = saved.type_ids,
                               .dropout = norm_ ? Dropout{} : dropped,
                               .dout = gradient,
                               .dtable = tokens_.accumulating_gradient(context),
                               .dpositions = positions_.accumulating_gradient(context),
                               .dtypes = types_.accumulating_gradient(context)});
}

}  // namespace llmcore
