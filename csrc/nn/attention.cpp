// Self-attention over the packed [q, k, v] rows, or over a cache.
#include "nn/attention.h"

#include <algorithm>
#include <cstring>

#include "ops/rope.h"

namespace llmcore {
namespace {

// Copies columns [offset, offset + Hkv D) of the new rows to where they stand in the cache.
void append(const Tensor& rows, int64_t offset, const Sequences& sequences, const Tensor& cache) {
  const int64_t width = rows.cols(), kept = cache.dim(2);
  for (int64_t b = 0; b < sequences.batch; ++b) {
    const int64_t past = sequences.past == nullptr ? 0 : sequences.past[b];
    for (int64_t t = 0; t < sequences.queries && past + t < sequences.lengths[b]; ++t)
      std::memcpy(cache.f32() + (b * cache.dim(1) + past + t) * kept,
                  rows.f32() + (b * sequences.queries + t) * width + offset, kept * sizeof(float));
  }
}

}  // namespace

SelfAttention::SelfAttention(const ParamBuilder& builder, const Config& config, uint32_t site)
    : config_(config),
      site_(site),
      qkv_(builder,
           {{"q", config.num_heads * config.head_dim},
            {"k", config.num_kv_heads * config.head_dim},
            {"v", config.num_kv_heads * config.head_dim}},
           config.hidden_size, config.attention_bias, config.init_std),
      out_(builder, {{"out", config.hidden_size}}, config.num_heads * config.head_dim,
           config.attention_out_bias, residual_std(config)) {}

HeadView SelfAttention::part(const Sequences& sequences, const Tensor& qkv,
                             int64_t first_head) const {
  const int64_t width = qkv.cols();
  return {.data = qkv.f32() + first_head * config_.head_dim,
          .batch_stride = sequences.queries * width,
          .row_stride = width,
          .head_stride = config_.head_dim};
}

void SelfAttention::rotate(const Context& context, const Sequences& sequences, const Tensor& qkv,
                           bool inverse) const {
  if (!sequences.cos) return;
  const HeadView heads = part(sequences, qkv, 0);  // q and k lie side by side
  rope(context, {.batch = sequences.batch,
                 .rows = sequences.queries,
                 .heads = config_.num_heads + config_.num_kv_heads,
                 .head_dim = config_.head_dim,
                 .x = heads,
                 .y = heads,
                 .rotary_dim = config_.rotary_dim,
                 .interleaved = config_.rope_interleaved,
                 .inverse = inverse,
                 .cos = sequences.cos,
                 .sin = sequences.sin,
                 .positions = sequences.positions});
}

AttentionArgs SelfAttention::arguments(const Context& context, const Sequences& sequences,
                                       const Tensor& qkv) const {
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  return {.batch = sequences.batch,
          .queries = sequences.queries,
          .keys = sequences.queries,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = config_.head_dim,
          .value_dim = config_.head_dim,
          .q = part(sequences, qkv, 0),
          .k = part(sequences, qkv, heads),
          .v = part(sequences, qkv, heads + kv_heads),
          .scale = config_.attention_scale,
          .softcap = config_.attention_softcap,
          .causal = sequences.causal,
          .window_left =
              config_.sliding_window > 0 && sequences.causal ? config_.sliding_window - 1 : -1,
          .kv_lengths = sequences.lengths,
          .prefix_lengths = sequences.prefix_lengths,
          .past = sequences.past,
          .dropout = context.dropout(config_.attention_dropout, inner_site(site_))};
}

// Adds the new keys and values to the cache and lets attention read from there.
void SelfAttention::use_cache(const Sequences& sequences, const Tensor& qkv,
                              AttentionArgs& args) const {
  const LayerCache& cache = sequences.caches[layer_of_site(site_)];
  const int64_t query_width = config_.num_heads * config_.head_dim;
  const int64_t kept = cache.k.dim(2), capacity = cache.k.dim(1);
  append(qkv, query_width, sequences, cache.k);
  append(qkv, query_width + kept, sequences, cache.v);
  const auto view = [&](const Tensor& tensor) {
    return HeadView{tensor.f32(), capacity * kept, kept, config_.head_dim};
  };
  args.k = view(cache.k);
  args.v = view(cache.v);
  args.keys = 0;
  for (int64_t b = 0; b < sequences.batch; ++b)
    args.keys = std::max<int64_t>(args.keys, sequences.lengths[b]);
}

void SelfAttention::forward(const Context& context, const Sequences& sequences, const Tensor& x,
                            const Tensor& y, Saved& saved, const MatmulArgs& tail) const {
  const int64_t rows = x.dim(0), mixed_width = config_.num_heads * config_.head_dim;
  Arena& arena = *context.arena;
  saved.x = x;
  saved.qkv = arena.keep(DType::kFloat32, rows, qkv_.out());
  saved.mixed = arena.keep(DType::kFloat32, rows, mixed_width);
  saved.lse = arena.keep(DType::kFloat32, sequences.batch, config_.num_heads, sequences.queries);
  qkv_.forward(context, x, saved.qkv);
  rotate(context, sequences, saved.qkv, false);

  AttentionForwardArgs args{arguments(context, sequences, saved.qkv)};
  if (sequences.caches != nullptr) use_cache(sequences, saved.qkv, args);
  args.out = part(sequences, saved.mixed, 0);
  args.lse = saved.lse.f32();
  attention_forward(context, args);
  out_.forward(context, saved.mixed, y, tail);
}

void SelfAttention::backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                             const Saved& saved, const Tensor& dx, bool accumulate) const {
  ScratchScope scope(*context.arena);
  const int64_t rows = saved.x.dim(0);
  const Tensor dmixed = context.arena->scratch(DType::kFloat32, rows, saved.mixed.dim(1));
  const Tensor dqkv = context.arena->scratch(DType::kFloat32, rows, saved.qkv.dim(1));
  out_.backward_params(context, dy, saved.mixed);
  out_.backward_input(context, dy, dmixed);

  AttentionBackwardArgs args{arguments(context, sequences, saved.qkv)};
  args.out = part(sequences, saved.mixed, 0);
  args.dout = part(sequences, dmixed, 0);
  args.lse = saved.lse.f32();
  args.dq = part(sequences, dqkv, 0);
  args.dk = part(sequences, dqkv, config_.num_heads);
  args.dv = part(sequences, dqkv, config_.num_heads + config_.num_kv_heads);
  attention_backward(context, args);
  rotate(context, sequences, dqkv, true);

  qkv_.backward_params(context, dqkv, saved.x);
  qkv_.backward_input(context, dqkv, dx, {.accumulate = accumulate});
}

}  // namespace llmcore
