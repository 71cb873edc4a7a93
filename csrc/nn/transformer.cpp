// The model: embedding, stack, head, and the passes over them.
#include "nn/transformer.h"

#include <algorithm>

#include "core/error.h"
#include "ops/backend.h"
#include "ops/elementwise.h"

namespace llmcore {
namespace {

// What a config may ask for that this version has no layer for.
const Config& supported(const Config& config) {
  const auto refuse = [](bool asked, const char* what) {
    CHECK(!asked, ConfigError, "Transformer: ", what, " not available in this version of llmcore");
  };
  refuse(config.num_encoder_layers > 0, "encoder layers (num_encoder_layers > 0) are");
  refuse(config.positions == PositionKind::kRelative, "relative positions are");
  refuse(config.qk_norm, "qk_norm is");
  refuse(config.head_transform, "head_transform is");
  refuse(config.pooler || config.num_labels > 0, "a pooler or classifier is");
  return config;
}

void check_batch(const Config& config, const Batch& batch) {
  CHECK(batch.ids.rank == 2, ShapeError, "model: ids must have shape [B, T], got ",
        shape_string(batch.ids));
  const int64_t rows = batch.ids.dim(0), length = batch.ids.dim(1);
  CHECK(config.positions == PositionKind::kNone || length <= config.max_positions, ShapeError,
        "model: ids have ", length, " tokens, the model has positions for ", config.max_positions);
  check_optional("model", "lengths", batch.lengths, "[B]", {rows}, DType::kInt32);
  check_optional("model", "prefix_lengths", batch.prefix_lengths, "[B]", {rows}, DType::kInt32);
  check_optional("model", "types", batch.types, "[B, T]", {rows, length}, DType::kInt32);
  for (int64_t b = 0; batch.lengths && b < rows; ++b) {
    const int32_t count = batch.lengths.as<int32_t>()[b];
    CHECK(count >= 0 && count <= length, ShapeError, "model: lengths[", b, "] must be from 0 to ",
          length, ", got ", count);
  }
}

void check_targets(const Batch& batch) {
  const int64_t count = batch.rows ? batch.rows.numel() : batch.ids.numel();
  check_optional("model", "rows", batch.rows, "[R]", {count}, DType::kInt32);
  check_tensor("model", "targets", batch.targets, "[R]", {count}, DType::kInt32);
  check_tensor("model", "weights", batch.weights, "[R]", {count});
  for (int64_t r = 0; batch.rows && r < count; ++r) {
    const int32_t row = batch.rows.as<int32_t>()[r];
    CHECK(row >= 0 && row < batch.ids.numel(), IndexError, "model: rows[", r,
          "] must be from 0 to ", batch.ids.numel() - 1, ", got ", row);
    CHECK(r == 0 || row > batch.rows.as<int32_t>()[r - 1], ShapeError,
          "model: rows must be ascending, rows[", r, "] = ", row, " is not");
  }
}

LossSum weighted_sum(const Tensor& losses, const Tensor& weights) {
  LossSum total;
  for (int64_t r = 0; r < losses.numel(); ++r) {
    total.sum += static_cast<double>(losses.f32()[r]) * static_cast<double>(weights.f32()[r]);
    total.weight += static_cast<double>(weights.f32()[r]);
  }
  return total;
}

}  // namespace

Transformer::Transformer(const Config& config, Device device)
    : config_(supported(config)),
      device_(device),
      kernels_(&kernels_for(device)),
      rope_(config_),
      embedding_(ParamBuilder(params_, "embed"), config_),
      stack_(ParamBuilder(params_, "decoder"), config_, config_.num_decoder_layers),
      head_(ParamBuilder(params_, "head"), config_, embedding_.tokens()) {
  params_.allocate();
}

Sequences Transformer::describe(const Context& context, const Batch& batch, const int32_t* past) {
  Sequences sequences{.batch = batch.ids.dim(0),
                      .queries = batch.ids.dim(1),
                      .lengths = batch.lengths.as<int32_t>(),
                      .prefix_lengths = batch.prefix_lengths.as<int32_t>(),
                      .past = past,
                      .cos = rope_.cos,
                      .sin = rope_.sin};
  sequences.positions = context.arena->keep(DType::kInt32, sequences.batch, sequences.queries);
  const bool bounded = config_.positions != PositionKind::kNone;
  for (int64_t b = 0; b < sequences.batch; ++b)
    for (int64_t t = 0; t < sequences.queries; ++t) {
      // Padding may lie beyond the last position; nobody sees what it gets.
      const int64_t position = t + (past == nullptr ? 0 : past[b]);
      sequences.positions.as<int32_t>()[b * sequences.queries + t] =
          static_cast<int32_t>(bounded ? std::min(position, config_.max_positions - 1) : position);
    }
  return sequences;
}

Tensor Transformer::infer(const Context& context, const Batch& batch, const Sequences& sequences) {
  const int64_t rows = batch.ids.numel();
  const Tensor hidden = context.arena->keep(DType::kFloat32, rows, config_.hidden_size);
  {
    KeepScope scope(*context.arena);
    Embedding::Saved unused;
    embedding_.forward(context, reshaped(batch.ids, rows), reshaped(sequences.positions, rows),
                       batch.types ? reshaped(batch.types, rows) : Tensor{}, hidden, unused);
  }
  stack_.infer(context, sequences, hidden);
  return hidden;
}

Tensor Transformer::selected_rows(const Context& context, const Batch& batch,
                                  const Tensor& hidden) {
  if (!batch.rows) return hidden;
  const Tensor selected =
      context.arena->keep(DType::kFloat32, batch.rows.numel(), config_.hidden_size);
  gather_rows(context, {.x = hidden, .index = batch.rows, .y = selected});
  return selected;
}

void Transformer::logits(const Batch& batch, const Tensor& logits) {
  check_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Tensor hidden = infer(context, batch, describe(context, batch, nullptr));
  head_.logits(context, hidden, reshaped(logits, hidden.dim(0), config_.vocab_size));
}

void Transformer::encode(const Batch& batch, const Tensor& hidden) {
  check_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Tensor result = infer(context, batch, describe(context, batch, nullptr));
  std::copy_n(result.f32(), result.numel(), hidden.f32());
}

void Transformer::row_losses(const Batch& batch, const Tensor& losses) {
  check_batch(config_, batch);
  check_targets(batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Tensor hidden = infer(context, batch, describe(context, batch, nullptr));
  head_.losses(context, selected_rows(context, batch, hidden), batch, losses);
}

LossSum Transformer::loss(const Batch& batch) {
  KeepScope scope(arena_);
  const Tensor losses = arena_.keep(DType::kFloat32, batch.targets.numel());
  row_losses(batch, losses);
  return weighted_sum(losses, batch.weights);
}

LossSum Transformer::add_gradients(const Context& context, const Batch& batch,
                                   double total_weight) {
  check_batch(config_, batch);
  check_targets(batch);
  Arena& arena = *context.arena;
  KeepScope scope(arena);
  const int64_t rows = batch.ids.numel(), targets = batch.targets.numel();
  const Sequences sequences = describe(context, batch, nullptr);

  Embedding::Saved saved_embedding;
  Stack::Saved saved_stack;
  const Tensor embedded = arena.keep(DType::kFloat32, rows, config_.hidden_size);
  embedding_.forward(context, reshaped(batch.ids, rows), reshaped(sequences.positions, rows),
                     batch.types ? reshaped(batch.types, rows) : Tensor{}, embedded,
                     saved_embedding);
  const Tensor hidden = stack_.forward(context, sequences, embedded, recompute, saved_stack);

  // The head turns hidden states into their gradient in place.
  const Tensor selected = selected_rows(context, batch, hidden);
  const Tensor losses = arena.keep(DType::kFloat32, targets);
  const Tensor row_scale = arena.keep(DType::kFloat32, targets);
  for (int64_t r = 0; r < targets; ++r)
    row_scale.f32()[r] = static_cast<float>(batch.weights.f32()[r] / total_weight);
  head_.losses_and_gradients(context, selected, batch, row_scale, losses);
  if (batch.rows) scatter_rows(context, {.x = selected, .index = batch.rows, .y = hidden});

  stack_.backward(context, sequences, recompute, saved_stack, hidden);
  embedding_.backward(context, saved_embedding, hidden);
  return weighted_sum(losses, batch.weights);
}

void Transformer::decode(const Tensor& ids, const Tensor& lengths, const Tensor& past,
                         const std::vector<LayerCache>& caches, const Tensor& logits) {
  const Context context = this->context();
  KeepScope scope(arena_);
  const int64_t batch = ids.dim(0), queries = ids.dim(1);
  const Tensor total = arena_.keep(DType::kInt32, batch);
  const Tensor last = arena_.keep(DType::kInt32, batch);
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t count = lengths.as<int32_t>()[b];
    total.as<int32_t>()[b] = past.as<int32_t>()[b] + count;
    last.as<int32_t>()[b] = static_cast<int32_t>(b * queries + std::max(count - 1, 0));
  }
  const Batch all{.ids = ids, .lengths = total};
  Sequences sequences = describe(context, all, past.as<int32_t>());
  sequences.caches = caches.data();
  const Tensor hidden = infer(context, all, sequences);
  head_.logits(context, selected_rows(context, {.rows = last}, hidden), logits);
}

}  // namespace llmcore
