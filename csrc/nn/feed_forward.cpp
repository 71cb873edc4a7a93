// The feed-forward network: activation and its derivative ride on the matrix products.
#include "nn/feed_forward.h"

#include "ops/activation.h"
#include "ops/elementwise.h"

namespace llmcore {
namespace {

Linear make_up(const ParamBuilder& builder, const Config& config, uint32_t site) {
  const int64_t width = config.ffn_size;
  if (config.gated_ffn)
    return Linear(builder, {{"gate", width}, {"up", width}}, config.hidden_size, config.ffn_bias,
                  config.init_std, config.lora, adapter_site(site, 0));
  return Linear(builder, {{"up", width}}, config.hidden_size, config.ffn_bias, config.init_std,
                config.lora, adapter_site(site, 0));
}

}  // namespace

FeedForward::FeedForward(const ParamBuilder& builder, const Config& config, uint32_t site)
    : config_(config),
      site_(site),
      up_(make_up(builder, config, site)),
      down_(builder, {{"down", config.hidden_size}}, config.ffn_size, config.ffn_bias,
            residual_std(config), config.lora, adapter_site(site, 1)) {}

Tensor FeedForward::half(const Tensor& both, int which) const {
  return view_from(both, which * config_.ffn_size, both.dim(0), config_.ffn_size);
}

void FeedForward::activate(const Context& context, const Tensor& up, const Tensor& hidden) const {
  const Dropout dropped = context.dropout(config_.ffn_dropout, inner_site(site_));
  if (config_.gated_ffn)
    gated_forward(context, {.activation = config_.activation,
                            .gate = half(up, 0),
                            .up = half(up, 1),
                            .row_stride = up_.out(),
                            .y = hidden});
  else
    activation_forward(context, {.activation = config_.activation, .x = up, .y = hidden});
  if (dropped.p > 0.0f) dropout(context, {.dropout = dropped, .x = hidden, .y = hidden});
}

void FeedForward::forward(const Context& context, const Sequences&, const Tensor& x,
                          const Tensor& y, Saved& saved, const MatmulArgs& tail,
                          const RowNorm& norm) const {
  ScratchScope scope(*context.arena);
  const Tensor hidden = context.scratch(x.dim(0), config_.ffn_size);
  saved.up = context.keep(x.dim(0), up_.out());
  if (config_.gated_ffn) {
    up_.forward(context, x, saved.up, {.norm = norm});
    activate(context, saved.up, hidden);
  } else {
    up_.forward(context, x, hidden,
                {.norm = norm,
                 .pre_activation = saved.up,
                 .activation = config_.activation,
                 .dropout = context.dropout(config_.ffn_dropout, inner_site(site_))});
  }
  down_.forward(context, hidden, y, tail);
}

void FeedForward::backward(const Context& context, const Sequences&, const Tensor& dy,
                           const Tensor& x, const Saved& saved, const Tensor& dx,
                           bool accumulate) const {
  ScratchScope scope(*context.arena);
  const bool gated = config_.gated_ffn;
  const Tensor dup = context.scratch(saved.up.dim(0), saved.up.dim(1));
  const auto scratch = [&] { return context.scratch(dy.dim(0), config_.ffn_size); };
  MatmulArgs fused{.dropout = context.dropout(config_.ffn_dropout, inner_site(site_))};
  if (!gated) {
    fused.gate_input = saved.up;
    fused.gate_activation = config_.activation;
  }
  // Where they can be, hidden and its gradient are made together, hidden in the place of up.
  const bool together = !gated && !down_.has_adapters();
  if (together) fused.gate_output = saved.up;
  const Tensor hidden = together ? saved.up : scratch(), dhidden = gated ? scratch() : dup;
  if (!together) activate(context, saved.up, hidden);
  down_.backward(context, dy, hidden, dhidden, fused);
  if (gated)
    gated_backward(context, {.activation = config_.activation,
                             .dy = dhidden,
                             .gate = half(saved.up, 0),
                             .up = half(saved.up, 1),
                             .dgate = half(dup, 0),
                             .dup = half(dup, 1),
                             .row_stride = up_.out(),
                             .drow_stride = up_.out()});
  up_.backward(context, dup, x, dx, {.accumulate = accumulate});
}

}  // namespace llmcore
