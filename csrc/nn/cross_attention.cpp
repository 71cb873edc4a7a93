// Cross-attention over the encoder's output, or over keys and values made of it before.
#include "nn/cross_attention.h"

#include "nn/heads.h"

namespace llmcore {

CrossAttention::CrossAttention(const ParamBuilder& builder, const Config& config, uint32_t site,
                               int64_t layer)
    : config_(config),
      layer_(layer),
      site_(site),
      q_(builder, {{"q", config.num_heads * config.head_dim}}, config.hidden_size,
         config.attention_bias, config.init_std, config.lora, adapter_site(site, 0)),
      kv_(builder,
          {{"k", config.num_kv_heads * config.head_dim},
           {"v", config.num_kv_heads * config.head_dim}},
          config.hidden_size, config.attention_bias, config.init_std, config.lora,
          adapter_site(site, 1)),
      out_(builder, {{"out", config.hidden_size}}, config.num_heads * config.head_dim,
           config.attention_out_bias, residual_std(config), config.lora, adapter_site(site, 2)) {}

void CrossAttention::remember(const Context& context, const Tensor& hidden, const Tensor& lengths,
                              const Tensor& rows, const LayerCache& to) const {
  ScratchScope scope(*context.arena);
  const int64_t batch = lengths.numel(), tokens = hidden.dim(0) / batch;
  const Tensor keys_values = context.scratch(hidden.dim(0), kv_.out());
  kv_.forward(context, hidden, keys_values);
  attention_append(context, {.batch = batch,
                             .tokens = tokens,
                             .k = heads_of(config_, keys_values, tokens, 0),
                             .v = heads_of(config_, keys_values, tokens, config_.num_kv_heads),
                             .kv_lengths = lengths,
                             .cache = {to.k, to.v, rows, {1, 0}}});
}

AttentionArgs CrossAttention::arguments(const Context& context, const Sequences& sequences,
                                        const Saved& saved) const {
  const Memory& memory = *sequences.memory;
  AttentionArgs args = attention_arguments(context, config_, sequences, site_);
  args.keys = memory.keys;
  args.q = heads_of(config_, saved.q, sequences.queries, 0);
  args.kv_lengths = memory.lengths;
  if (memory.layers.empty()) {
    args.k = heads_of(config_, saved.keys_values, memory.keys, 0);
    args.v = heads_of(config_, saved.keys_values, memory.keys, config_.num_kv_heads);
  } else {
    args.cache = {memory.layers[layer_].k, memory.layers[layer_].v, memory.rows, {1, 0}};
  }
  return args;
}

void CrossAttention::forward(const Context& context, const Sequences& sequences, const Tensor& x,
                             const Tensor& y, Saved& saved, const MatmulArgs& tail,
                             const RowNorm& norm) const {
  const int64_t rows = x.dim(0), width = config_.num_heads * config_.head_dim;
  const Memory& memory = *sequences.memory;
  saved.q = context.keep(rows, width);
  saved.mixed = context.keep(rows, width);
  saved.softmax = context.arena->keep(DType::kFloat32, sequences.batch, config_.num_heads,
                                      sequences.queries, 2);
  q_.forward(context, x, saved.q, {.norm = norm});
  if (memory.layers.empty()) {
    saved.keys_values = context.keep(memory.hidden.dim(0), kv_.out());
    kv_.forward(context, memory.hidden, saved.keys_values);
  }
  AttentionForwardArgs args{arguments(context, sequences, saved)};
  look_at_weights(context, args, layer_, sequences.cross_probes);
  args.out = heads_of(config_, saved.mixed, sequences.queries, 0);
  args.softmax = saved.softmax.f32();
  attention_forward(context, args);
  out_.forward(context, saved.mixed, y, tail);
}

void CrossAttention::backward(const Context& context, const Sequences& sequences, const Tensor& dy,
                              const Tensor& x, const Saved& saved, const Tensor& dx,
                              bool accumulate) const {
  ScratchScope scope(*context.arena);
  const Memory& memory = *sequences.memory;
  const auto like = [&](const Tensor& other) {
    return context.scratch(other.dim(0), other.dim(1));
  };
  const Tensor dmixed = like(saved.mixed), dq = like(saved.q);
  const Tensor dkeys_values = like(saved.keys_values);
  out_.backward(context, dy, saved.mixed, dmixed);

  AttentionBackwardArgs args{arguments(context, sequences, saved)};
  args.out = heads_of(config_, saved.mixed, sequences.queries, 0);
  args.dout = heads_of(config_, dmixed, sequences.queries, 0);
  args.softmax = saved.softmax.f32();
  args.dq = heads_of(config_, dq, sequences.queries, 0);
  args.dk = heads_of(config_, dkeys_values, memory.keys, 0);
  args.dv = heads_of(config_, dkeys_values, memory.keys, config_.num_kv_heads);
  attention_backward(context, args);

  q_.backward(context, dq, x, dx, {.accumulate = accumulate});
  kv_.backward(context, dkeys_values, memory.hidden, memory.gradient, {.accumulate = true});
}

}  // namespace llmcore
