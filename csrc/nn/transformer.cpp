// The model: stacks, heads, and the passes over them.
#include "nn/transformer.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "nn/check_batch.h"
#include "ops/backend.h"
#include "ops/elementwise.h"
#include "ops/sampling.h"

namespace llmcore {
namespace {

Tensor flat(const Tensor& ids) {
  return ids ? reshaped(ids, ids.numel()) : Tensor{};
}

void copy(const Context& context, const Tensor& from, const Tensor& to) {
  copy_rows(context, {.rows = from.rows(),
                      .cols = from.cols(),
                      .dtype = from.dtype,
                      .x = from.data,
                      .y = to.data,
                      .x_stride = from.cols(),
                      .y_stride = from.cols()});
}

// Keys that a decoding pass is made for. On a GPU more than there are, so that the passes of many
// tokens look the same; on the CPU as many.
int64_t key_room(const Cache& cache, const Sequences& sequences) {
  const int64_t keys = sequences.keys();
  if (cache.rows.device.type == DeviceType::kCpu) return keys;
  constexpr int64_t kStep = 4 * kTileTokens;
  return std::min((keys + kStep - 1) / kStep * kStep, cache.rows.dim(1));
}

// Where caches lie and what they are: one may be made where another was.
void add_layers(Look& look, const std::vector<LayerCache>& layers) {
  for (const LayerCache& layer : layers)
    for (const KvTiles& tiles : {layer.k, layer.v}) {
      look.add(reinterpret_cast<int64_t>(tiles.data));
      look.add(static_cast<int64_t>(tiles.dtype));
      look.add(tiles.tokens);
    }
}

Param token_table(ParamStore& params, const Config& config) {
  const Param table =
      ParamBuilder(params, "embed")
          .matrix("tokens.weight", config.vocab_size, config.hidden_size, config.init_std);
  table.declare_packable();
  return table;
}

// Alone, a stack's part of the embedding lies beside the tokens; otherwise each has its own.
std::optional<Stack> make_stack(ParamStore& params, const Config& config, const Param& tokens,
                                bool encoder) {
  const int64_t layers = encoder ? config.num_encoder_layers : config.num_decoder_layers;
  const bool both = config.num_encoder_layers > 0 && config.num_decoder_layers > 0;
  if (layers == 0) return std::nullopt;
  const std::string name = encoder ? "encoder" : "decoder";
  return Stack(params, config,
               {.name = name,
                .layers = layers,
                .first_number = encoder ? config.num_decoder_layers : 0,
                .causal = !encoder,
                .cross = both && !encoder,
                .embedding_name = both ? name : "embed",
                .embedding = {.tokens = tokens,
                              .norm_name = both ? "embedding_norm" : "norm",
                              .types = encoder || !both,
                              .site = encoder ? kEncoderEmbeddingSite : kEmbeddingSite}});
}

}  // namespace

Transformer::Transformer(const Config& config, Device device, Backing backing)
    : config_(config),
      device_(device),
      kernels_(&kernels_for(device, backing)),
      queue_(backing == Backing::kAddresses ? nullptr : queue_of(device)),
      params_(backing == Backing::kAddresses ? Device{} : device),
      rope_(config_, params_.device()),
      tokens_(token_table(params_, config_)),
      encoder_(make_stack(params_, config_, tokens_, true)),
      decoder_(make_stack(params_, config_, tokens_, false)),
      head_(ParamBuilder(params_, "head"), config_, tokens_),
      classifier_(params_, config_),
      arena_(device, backing) {
  params_.allocate(backing);
}

void Transformer::take_weights(Transformer& other) {
  params_.take_weights(other.params_);
  for (const ParamInfo& info : other.params_.table())
    params_.set_trainable(info.name, info.trainable);
  recompute = other.recompute;
}

Sequences Transformer::describe(const Context& context, const Stack& stack, const Tensor& ids,
                                const Tensor& lengths, const Tensor& past) {
  Sequences sequences{.batch = ids.dim(0),
                      .queries = ids.dim(1),
                      .causal = stack.causal(),
                      .lengths = lengths,
                      .past = past,
                      .cos = rope_.cos,
                      .sin = rope_.sin};
  sequences.positions = context.arena->input(DType::kInt32, sequences.batch, sequences.queries);
  for (int64_t b = 0; b < sequences.batch; ++b)
    for (int64_t t = 0; t < sequences.queries; ++t) {
      // Padding may lie beyond the last position; nobody sees what it gets.
      const int64_t position = t + (past ? past.host<int32_t>()[b] : 0);
      sequences.positions.host<int32_t>()[b * sequences.queries + t] = static_cast<int32_t>(
          has_bounded_positions(config_) ? std::min(position, config_.max_positions - 1)
                                         : position);
    }
  return sequences;
}

// The caller's arrays are in the memory of the CPU.
Transformer::Pass Transformer::prepare(const Context& context, const Batch& batch,
                                       double total_weight) {
  Pass pass{.batch = batch};
  if (context.device.type != DeviceType::kCpu) {
    Batch& here = pass.batch;
    for (Tensor* tensor :
         {&here.enc_ids, &here.enc_lengths, &here.dec_ids, &here.dec_lengths, &here.prefix_lengths,
          &here.types, &here.rows, &here.targets, &here.weights}) {
      if (!*tensor) continue;
      const Tensor to = context.arena->input(tensor->dtype, tensor->numel());
      std::memcpy(to.host<char>(), tensor->data, static_cast<size_t>(tensor->nbytes()));
      tensor->data = to.data;
      tensor->device = to.device;
      tensor->mirror = to.mirror;
    }
  }
  if (encoder_) {
    pass.encoder = describe(context, *encoder_, pass.batch.enc_ids, pass.batch.enc_lengths);
    encoder_->prepare(context, pass.encoder);
  }
  if (decoder_ && pass.batch.dec_ids) {
    pass.decoder = describe(context, *decoder_, pass.batch.dec_ids, pass.batch.dec_lengths);
    pass.decoder.prefix_lengths = pass.batch.prefix_lengths;
    decoder_->prepare(context, pass.decoder);
  }
  if (total_weight > 0.0) {
    pass.row_scale = context.arena->input(DType::kFloat32, batch.weights.numel());
    for (int64_t r = 0; r < batch.weights.numel(); ++r)
      pass.row_scale.host<float>()[r] = static_cast<float>(batch.weights.f32()[r] / total_weight);
  }
  context.upload();
  return pass;
}

StackInput Transformer::encoder_input(const Batch& batch) const {
  return {.ids = flat(batch.enc_ids), .types = flat(batch.types)};
}

StackInput Transformer::decoder_input(const Batch& batch) const {
  return {.ids = flat(batch.dec_ids), .types = encoder_ ? Tensor{} : flat(batch.types)};
}

Tensor Transformer::infer_encoder(const Context& context, const Pass& pass,
                                  const AttentionProbes* probes) {
  if (!encoder_) return {};
  Sequences sequences = pass.encoder;
  if (probes != nullptr) sequences.self_probes = &probes->encoder;
  return encoder_->infer(context, encoder_input(pass.batch), sequences);
}

Tensor Transformer::infer(const Context& context, const Pass& pass, const AttentionProbes* probes) {
  const Tensor encoded = infer_encoder(context, pass, probes);
  if (!decoder_) return encoded;
  Sequences sequences = pass.decoder;
  Memory memory;
  if (encoder_) {
    memory.keys = pass.batch.enc_ids.dim(1);
    memory.lengths = pass.batch.enc_lengths;
    memory.hidden = encoded;
    sequences.memory = &memory;
  }
  if (probes != nullptr) {
    sequences.self_probes = &probes->decoder;
    sequences.cross_probes = &probes->cross;
  }
  return decoder_->infer(context, decoder_input(pass.batch), sequences);
}

Tensor Transformer::selected_rows(const Context& context, const Batch& batch,
                                  const Tensor& hidden) {
  if (!batch.rows) return hidden;
  const Tensor selected = context.keep(batch.rows.numel(), config_.hidden_size);
  gather_rows(context, {.x = hidden, .index = batch.rows, .y = selected});
  return selected;
}

void Transformer::logits(const Batch& batch, const Tensor& logits) {
  check_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Tensor hidden = infer(context, prepare(context, batch));
  head_.logits(context, hidden, reshaped(logits, hidden.dim(0), config_.vocab_size));
}

void Transformer::encode(const Batch& batch, const Tensor& hidden) {
  check_encoder_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Pass pass = prepare(context, batch);
  copy(context, encoder_ ? infer_encoder(context, pass) : infer(context, pass), hidden);
}

void Transformer::label_logits(const Batch& batch, const Tensor& logits) {
  check_batch(config_, batch);
  check_labels(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Pass pass = prepare(context, batch);
  classifier_.logits(context, selected_rows(context, pass.batch, infer(context, pass)), logits);
}

void Transformer::pooled(const Batch& batch, const Tensor& pooled) {
  check_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Pass pass = prepare(context, batch);
  copy(context, classifier_.pool(context, selected_rows(context, pass.batch, infer(context, pass))),
       pooled);
}

void Transformer::row_losses(const Batch& batch, const Tensor& losses) {
  check_batch(config_, batch);
  check_targets(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  row_losses(context, prepare(context, batch), losses);
}

void Transformer::row_losses(const Context& context, const Pass& pass, const Tensor& losses) {
  const Tensor selected = selected_rows(context, pass.batch, infer(context, pass));
  if (pass.batch.labels)
    classifier_.losses(context, selected, pass.batch, losses);
  else
    head_.losses(context, selected, pass.batch, losses);
}

LossSum Transformer::loss(const Batch& batch) {
  check_batch(config_, batch);
  check_targets(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  auto* state = static_cast<StepState*>(arena_.keep_bytes(sizeof(StepState)));
  const Tensor losses = arena_.keep(DType::kFloat32, batch.targets.numel());
  const Pass pass = prepare(context, batch);
  begin_step(context, state);
  row_losses(context, pass, losses);
  weighted_sum(context, {.losses = losses, .weights = pass.batch.weights, .state = state});
  const StepState found = read_state(context, state);
  return {.sum = found.loss_sum, .weight = found.weight};
}

Transformer::Pass Transformer::prepare_gradients(const Context& context, const Batch& batch,
                                                 double total_weight) {
  check_batch(config_, batch);
  check_targets(config_, batch);
  return prepare(context, batch, total_weight);
}

void Transformer::add_gradients(const Context& context, const Pass& pass, StepState* state) {
  const Batch& batch = pass.batch;
  Arena& arena = *context.arena;
  KeepScope scope(arena);
  Sequences encoder_sequences = pass.encoder, decoder_sequences = pass.decoder;
  Stack::Saved encoder_saved, decoder_saved;
  Memory memory;
  Tensor hidden;
  if (encoder_)
    hidden = encoder_->forward(context, encoder_input(batch), encoder_sequences, recompute,
                               encoder_saved);
  if (decoder_) {
    if (encoder_) {
      memory.keys = batch.enc_ids.dim(1);
      memory.lengths = batch.enc_lengths;
      memory.hidden = hidden;
      memory.gradient = context.keep(hidden.dim(0), hidden.dim(1));
      fill(context, {.value = 0.0f, .y = memory.gradient});
      decoder_sequences.memory = &memory;
    }
    hidden = decoder_->forward(context, decoder_input(batch), decoder_sequences, recompute,
                               decoder_saved);
  }

  // The head turns hidden states into their gradient in place.
  const int64_t targets = batch.targets.numel();
  const Tensor selected = selected_rows(context, batch, hidden);
  const Tensor losses = arena.keep(DType::kFloat32, targets);
  if (batch.labels)
    classifier_.losses_and_gradients(context, selected, batch, pass.row_scale, losses);
  else
    head_.losses_and_gradients(context, selected, batch, pass.row_scale, losses);
  if (batch.rows) scatter_rows(context, {.x = selected, .index = batch.rows, .y = hidden});

  if (decoder_) decoder_->backward(context, decoder_sequences, recompute, decoder_saved, hidden);
  if (encoder_)
    encoder_->backward(context, encoder_sequences, recompute, encoder_saved,
                       decoder_ ? memory.gradient : hidden);
  weighted_sum(context, {.losses = losses, .weights = batch.weights, .state = state});
}

void Transformer::encode_memory(const Tensor& ids, const Tensor& lengths, const Tensor& rows,
                                const std::vector<LayerCache>& to) {
  const Context context = this->context();
  KeepScope scope(arena_);
  Pass pass{.batch = {.enc_ids = ids, .enc_lengths = lengths}};
  pass.encoder = describe(context, *encoder_, ids, lengths);
  encoder_->prepare(context, pass.encoder);
  context.upload();
  const Tensor hidden = infer_encoder(context, pass);
  decoder_->remember(context, hidden, lengths, rows, to);
}

void Transformer::decode(const DecodeArgs& args) {
  const Context context = this->context();
  KeepScope scope(arena_);
  const int64_t batch = args.ids.dim(0);
  const Tensor total = arena_.input(DType::kInt32, batch);
  for (int64_t b = 0; b < batch; ++b)
    total.host<int32_t>()[b] = args.past.host<int32_t>()[b] + args.lengths.host<int32_t>()[b];
  Sequences sequences = describe(context, *decoder_, args.ids, total, args.past);
  sequences.cache = args.cache;
  sequences.memory = args.memory;
  sequences.key_room = key_room(*args.cache, sequences);
  decoder_->prepare(context, sequences);
  context.upload();

  Look look;
  look.add(arena_.trims());
  look.add(arena_.keep_mark().keep);
  look.add(sequences.keys());
  for (const Tensor& tensor : {args.ids, args.lengths, args.past, args.rows, args.logits, total,
                               args.cache->rows, sequences.positions, sequences.buckets,
                               args.settings, args.choices, args.chosen_ids, args.from})
    look.add(tensor);
  look.add(params_.version());
  look.add(args.cache->apart);
  add_layers(look, args.cache->layers);
  if (args.memory != nullptr) {
    look.add(args.memory->keys);
    look.add(args.memory->lengths);
    look.add(args.memory->rows);
    add_layers(look, args.memory->layers);
  }
  decoding_.run(context, look, [&](const Context& where) {
    if (args.from)
      fill_ids(where, {.from = flat(args.from), .chosen = args.chosen_ids, .ids = flat(args.ids)});
    const Tensor hidden = decoder_->infer(where, {.ids = flat(args.ids)}, sequences);
    if (args.rows.numel() == 0) return;
    const bool all = args.rows.numel() == hidden.rows();  // which are in order
    head_.logits(where, all ? hidden : selected_rows(where, {.rows = args.rows}, hidden),
                 args.logits);
    if (args.settings)
      sample_tokens(where, {.logits = args.logits,
                            .settings = args.settings,
                            .choices = args.choices,
                            .ids = args.chosen_ids});
  });
}

void Transformer::attention_weights(const Batch& batch, const AttentionProbes& probes) {
  const bool encoder_alone = encoder_ && probes.decoder.empty() && probes.cross.empty();
  if (encoder_alone)
    check_encoder_batch(config_, batch);
  else
    check_batch(config_, batch);
  const Context context = this->context();
  KeepScope scope(arena_);
  const Pass pass = prepare(context, batch);
  if (encoder_alone)
    infer_encoder(context, pass, &probes);
  else
    infer(context, pass, &probes);
}

}  // namespace llmcore
