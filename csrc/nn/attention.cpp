// Self-attention over the packed [q, k, v] rows, or over a cache.
#include "nn/attention.h"

#include "nn/heads.h"
#include "ops/elementwise.h"
#include "ops/rope.h"

namespace llmcore {
namespace {

std::optional<Norm> head_norm(const ParamBuilder& builder, const Config& config) {
  if (!config.qk_norm) return std::nullopt;
  return Norm(
      builder,
      Norm::Shape{
          .kind = NormKind::kRms, .size = config.head_dim, .eps = config.norm_eps, .bias = false});
}

// Columns [offset, offset + heads D) of `packed`, copied to or from a matrix of one head a row.
CopyRowsArgs unpack(const Tensor& packed, int64_t offset, const Tensor& heads, int64_t count) {
  const int64_t width = count * heads.cols();
  return {.rows = packed.rows(),
          .cols = width,
          .dtype = packed.dtype,
          .x = view_from(packed, offset).data,
          .y = heads.data,
          .x_stride = packed.cols(),
          .y_stride = width};
}
CopyRowsArgs pack(const Tensor& heads, int64_t count, const Tensor& packed, int64_t offset) {
  const int64_t width = count * heads.cols();
  return {.rows = packed.rows(),
          .cols = width,
          .dtype = packed.dtype,
          .x = heads.data,
          .y = view_from(packed, offset).data,
          .x_stride = width,
          .y_stride = packed.cols()};
}

}  // namespace

SelfAttention::SelfAttention(const ParamBuilder& builder, const Config& config, uint32_t site,
                             int64_t layer)
    : config_(config),
      layer_(layer),
      site_(site),
      qkv_(builder,
           {{"q", config.num_heads * config.head_dim},
            {"k", config.num_kv_heads * config.head_dim},
            {"v", config.num_kv_heads * config.head_dim}},
           config.hidden_size, config.attention_bias, config.init_std, config.lora,
           adapter_site(site, 0)),
      q_norm_(head_norm(builder.scope("q_norm"), config)),
      k_norm_(head_norm(builder.scope("k_norm"), config)),
      out_(builder, {{"out", config.hidden_size}}, config.num_heads * config.head_dim,
           config.attention_out_bias, residual_std(config), config.lora, adapter_site(site, 1)) {}

void SelfAttention::rotate(const Context& context, const Sequences& sequences, const Tensor& qkv,
                           bool inverse) const {
  if (!sequences.cos) return;
  const HeadView heads = heads_of(config_, qkv, sequences.queries, 0);  // q and k lie side by side
  rope(context, {.batch = sequences.batch,
                 .rows = sequences.queries,
                 .heads = config_.num_heads + config_.num_kv_heads,
                 .head_dim = config_.head_dim,
                 .dtype = qkv.dtype,
                 .x = heads,
                 .y = heads,
                 .rotary_dim = config_.rotary_dim,
                 .interleaved = config_.rope_interleaved,
                 .inverse = inverse,
                 .cos = sequences.cos,
                 .sin = sequences.sin,
                 .positions = sequences.positions});
}

// Every head of q and of k is normalised by itself (Henry et al. 2020; Qwen3).
void SelfAttention::normalise(const Context& context, const Tensor& qkv, Saved& saved) const {
  if (!q_norm_) return;
  const auto apply = [&](const Norm& norm, int64_t heads, int64_t first_head, Norm::Saved& kept) {
    ScratchScope scope(*context.arena);
    const int64_t rows = qkv.rows() * heads, offset = first_head * config_.head_dim;
    const Tensor x = context.keep(rows, config_.head_dim);
    const Tensor y = context.scratch(rows, config_.head_dim);
    copy_rows(context, unpack(qkv, offset, x, heads));
    norm.forward(context, x, y, kept);
    copy_rows(context, pack(y, heads, qkv, offset));
  };
  apply(*q_norm_, config_.num_heads, 0, saved.q_norm);
  apply(*k_norm_, config_.num_kv_heads, config_.num_heads, saved.k_norm);
}

void SelfAttention::normalise_backward(const Context& context, const Tensor& dqkv,
                                       const Saved& saved) const {
  if (!q_norm_) return;
  const auto apply = [&](const Norm& norm, int64_t heads, int64_t first_head,
                         const Norm::Saved& kept) {
    ScratchScope scope(*context.arena);
    const int64_t rows = dqkv.rows() * heads, offset = first_head * config_.head_dim;
    const Tensor gradient = context.scratch(rows, config_.head_dim);
    copy_rows(context, unpack(dqkv, offset, gradient, heads));
    norm.backward(context, gradient, kept, gradient, false);
    copy_rows(context, pack(gradient, heads, dqkv, offset));
  };
  apply(*q_norm_, config_.num_heads, 0, saved.q_norm);
  apply(*k_norm_, config_.num_kv_heads, config_.num_heads, saved.k_norm);
}

AttentionArgs SelfAttention::arguments(const Context& context, const Sequences& sequences,
                                       const Tensor& qkv) const {
  const int64_t heads = config_.num_heads, queries = sequences.queries;
  AttentionArgs args = attention_arguments(context, config_, sequences, site_);
  args.keys = queries;
  args.q = heads_of(config_, qkv, queries, 0);
  args.k = heads_of(config_, qkv, queries, heads);
  args.v = heads_of(config_, qkv, queries, heads + config_.num_kv_heads);
  args.causal = sequences.causal;
  if (config_.sliding_window > 0 && sequences.causal) args.window_left = config_.sliding_window - 1;
  args.kv_lengths = sequences.lengths;
  args.prefix_lengths = sequences.prefix_lengths;
  args.past = sequences.past;
  args.bias = sequences.bias;
  return args;
}

void SelfAttention::forward(const Context& context, const Sequences& sequences, const Tensor& x,
                            const Tensor& y, Saved& saved, const MatmulArgs& tail,
                            const RowNorm& norm) const {
  const int64_t rows = x.dim(0), mixed_width = config_.num_heads * config_.head_dim;
  saved.qkv = context.keep(rows, qkv_.out());
  saved.mixed = context.keep(rows, mixed_width);
  saved.softmax = context.arena->keep(DType::kFloat32, sequences.batch, config_.num_heads,
                                      sequences.queries, 2);
  qkv_.forward(context, x, saved.qkv, {.norm = norm});
  normalise(context, saved.qkv, saved);
  rotate(context, sequences, saved.qkv, false);

  AttentionForwardArgs args{arguments(context, sequences, saved.qkv)};
  if (sequences.cache != nullptr) {  // which new keys and values are added to
    args.cache = sequences.cache->layer(layer_);
    args.keys = sequences.keys();
    args.append = true;
    args.apart = sequences.cache->apart;
  }
  look_at_weights(context, args, layer_, sequences.self_probes);
  args.out = heads_of(config_, saved.mixed, sequences.queries, 0);
  args.softmax = saved.softmax.f32();
  attention_forward(context, args);
  out_.forward(context, saved.mixed, y, tail);
}

void SelfAttention::backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                             const Tensor& x, const Saved& saved, const Tensor& dx,
                             bool accumulate) const {
  ScratchScope scope(*context.arena);
  const int64_t rows = x.dim(0);
  const Tensor dmixed = context.scratch(rows, saved.mixed.dim(1));
  const Tensor dqkv = context.scratch(rows, saved.qkv.dim(1));
  out_.backward(context, dy, saved.mixed, dmixed);

  AttentionBackwardArgs args{arguments(context, sequences, saved.qkv)};
  const int64_t queries = sequences.queries;
  args.out = heads_of(config_, saved.mixed, queries, 0);
  args.dout = heads_of(config_, dmixed, queries, 0);
  args.softmax = saved.softmax.f32();
  args.dq = heads_of(config_, dqkv, queries, 0);
  args.dk = heads_of(config_, dqkv, queries, config_.num_heads);
  args.dv = heads_of(config_, dqkv, queries, config_.num_heads + config_.num_kv_heads);
  args.dbias = sequences.dbias;
  attention_backward(context, args);
  rotate(context, sequences, dqkv, true);
  normalise_backward(context, dqkv, saved);

  qkv_.backward(context, dqkv, x, dx, {.accumulate = accumulate});
}

}  // namespace llmcore
