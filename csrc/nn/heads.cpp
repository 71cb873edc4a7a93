// Attention's arguments from the config, and its weights one head at a time.
#include "nn/heads.h"

namespace llmcore {

HeadView heads_of(const Config& config, const Tensor& matrix, int64_t rows, int64_t first_head) {
  const int64_t width = matrix.cols();
  return {.data = view_from(matrix, first_head * config.head_dim).data,
          .batch_stride = rows * width,
          .row_stride = width,
          .head_stride = config.head_dim};
}

AttentionArgs attention_arguments(const Context& context, const Config& config,
                                  const Sequences& sequences, uint32_t site) {
  return {.batch = sequences.batch,
          .queries = sequences.queries,
          .heads = config.num_heads,
          .kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .value_dim = config.head_dim,
          .dtype = context.activations,
          .scale = config.attention_scale,
          .softcap = config.attention_softcap,
          .dropout = context.dropout(config.attention_dropout, inner_site(site))};
}

void look_at_weights(const Context& context, const AttentionArgs& args, int64_t layer,
                     const std::vector<AttentionProbe>* probes) {
  if (probes == nullptr) return;
  for (const AttentionProbe& probe : *probes) {
    if (probe.layer != layer) continue;
    ScratchScope scope(*context.arena);
    AttentionWeightsArgs one{args};
    const int64_t kv_head = probe.head / (args.heads / args.kv_heads);
    one.heads = one.kv_heads = 1;
    one.queries = probe.queries;
    one.q.data = args.q.at(0, probe.first_query, probe.head);
    one.k.data = args.k.at(0, 0, kv_head);
    if (args.bias.data != nullptr)
      one.bias.data = static_cast<float*>(args.bias.data) + probe.head * args.bias.stride[1] +
                      probe.first_query * args.bias.stride[2];
    // The queries before the first count as past.
    KeepScope inputs(*context.arena);
    one.past = context.arena->input(DType::kInt32, args.batch);
    for (int64_t b = 0; b < args.batch; ++b)
      one.past.host<int32_t>()[b] =
          static_cast<int32_t>(probe.first_query + (args.past ? args.past.host<int32_t>()[b] : 0));
    context.upload();
    one.weights = probe.weights;
    attention_weights(context, one);
  }
}

}  // namespace llmcore
