// Buckets of distances, and a bias that lies along the diagonals of the scores.
#include "nn/relative_bias.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "ops/elementwise.h"
#include "ops/embedding.h"

namespace llmcore {

RelativeBias::RelativeBias(const ParamBuilder& builder, const Config& config, bool causal)
    : heads_(config.num_heads),
      buckets_(config.relative_buckets),
      max_distance_(config.relative_max_distance),
      causal_(causal),
      table_(builder.matrix("weight", buckets_, heads_, config.init_std)) {}

int32_t RelativeBias::bucket(int64_t distance) const {
  const int64_t side = causal_ ? buckets_ : buckets_ / 2;
  const int64_t first = !causal_ && distance > 0 ? side : 0;
  const int64_t away = causal_ ? std::max<int64_t>(-distance, 0) : std::abs(distance);
  const int64_t exact = side / 2;
  if (away < exact) return static_cast<int32_t>(first + away);
  // Half of the buckets are as wide as they are far. In single precision, like the models trained
  // with it: at some borders the rounding decides.
  const float times = static_cast<float>(away) / static_cast<float>(exact);
  const float range =
      static_cast<float>(std::log(static_cast<double>(max_distance_) / static_cast<double>(exact)));
  const float share = std::log(times) / range * static_cast<float>(side - exact);
  return static_cast<int32_t>(first + std::min(exact + static_cast<int64_t>(share), side - 1));
}

void RelativeBias::prepare(const Context& context, Sequences& sequences) const {
  const int64_t queries = sequences.queries, width = queries + sequences.keys() - 1;
  // Sequences differ in what they have behind them, if anything.
  const int64_t kinds = sequences.past ? sequences.batch : 1;
  sequences.buckets = context.arena->input(DType::kInt32, kinds, width);
  for (int64_t b = 0; b < kinds; ++b) {
    const int64_t past = sequences.past ? sequences.past.host<int32_t>()[b] : 0;
    for (int64_t w = 0; w < width; ++w)
      sequences.buckets.host<int32_t>()[b * width + w] = bucket(w - (queries - 1) - past);
  }
}

void RelativeBias::forward(const Context& context, Sequences& sequences) const {
  Arena& arena = *context.arena;
  const int64_t kinds = sequences.buckets.dim(0), width = sequences.buckets.dim(1);
  const Tensor bias = arena.keep(DType::kFloat32, kinds, heads_, width);
  ScratchScope scope(arena);
  const Tensor rows = arena.scratch(DType::kFloat32, kinds * width, heads_);
  embedding_forward(
      context,
      {.ids = reshaped(sequences.buckets, kinds * width), .table = table_.weight(), .out = rows});
  for (int64_t b = 0; b < kinds; ++b)
    transpose(context, {.x = row_slice(rows, b * width, width),
                        .y = reshaped(row_slice(bias, b, 1), heads_, width)});
  sequences.bias = {.data = bias.f32() + sequences.queries - 1,
                    .stride = {kinds > 1 ? heads_ * width : 0, width, -1, 1}};
}

void RelativeBias::begin_backward(const Context& context, Sequences& sequences,
                                  Saved& saved) const {
  if (!table_.trainable()) return;
  const int64_t width = sequences.buckets.numel();
  saved.gradient = context.arena->keep(DType::kFloat32, heads_, width);
  fill(context, {.value = 0.0f, .y = saved.gradient});
  sequences.dbias = {.data = saved.gradient.f32() + sequences.queries - 1,
                     .stride = {0, width, -1, 1}};
}

void RelativeBias::finish_backward(const Context& context, const Sequences& sequences,
                                   const Saved& saved) const {
  if (!saved.gradient) return;
  ScratchScope scope(*context.arena);
  const int64_t width = sequences.buckets.numel();
  const Tensor rows = context.arena->scratch(DType::kFloat32, width, heads_);
  transpose(context, {.x = saved.gradient, .y = rows});
  embedding_backward(context, {.ids = reshaped(sequences.buckets, width),
                               .dout = rows,
                               .dtable = table_.accumulating_gradient(context)});
}

}  // namespace llmcore
