// Transformer: a whole model, an encoder, a decoder or both; one config, no code per family.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/captured.h"
#include "core/queue.h"
#include "nn/batch.h"
#include "nn/head.h"
#include "nn/rope_table.h"
#include "nn/stack.h"
#include "ops/kernels.h"
#include "ops/optimizer.h"

namespace llmcore {

// One pass of generation: the next tokens of sequences whose earlier ones are in a cache. A
// sequence may have several rows, one after the other.
struct DecodeArgs {
  Tensor ids;                      // [B, T] int32, at positions past[b] on
  Tensor lengths;                  // [B] int32, how many of them are real
  Tensor past;                     // [B] int32
  const Cache* cache = nullptr;    // theirs, and where their keys and values go
  const Memory* memory = nullptr;  // of the encoder's output; with an encoder
  Tensor rows;                     // [R] int32 flat positions in ids, ascending; or none
  Tensor logits;                   // [R, V] after those tokens
  // On a GPU: a token chosen from each of them in the same pass, and ids that were chosen before;
  // or none. See ops/sampling.h.
  Tensor settings;    // [R]
  Tensor choices;     // [M]
  Tensor chosen_ids;  // [M]
  Tensor from;        // [B, T] of chosen_ids
};

// Whose attention weights a forward pass is to write down.
struct AttentionProbes {
  std::vector<AttentionProbe> encoder, decoder, cross;
};

class Transformer {
 public:
  // Weights are zero until initialise() or until a checkpoint is copied into parameters(). Of
  // addresses alone, to plan, what is on the device is in the memory of the CPU.
  Transformer(const Config& config, Device device, Backing backing = Backing::kMemory);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  const Config& config() const { return config_; }
  ParamStore& params() { return params_; }
  Device device() const { return device_; }
  Context context() {
    return {.device = device_, .kernels = kernels_, .arena = &arena_, .queue = queue_};
  }
  Arena& arena() { return arena_; }

  // The weights of a model of the same config, on any device, and what is trainable.
  void take_weights(Transformer& other);

  // One call at a time may use a model's arena: every public entry takes this lock.
  std::mutex& mutex() { return mutex_; }

  // Keep only each block's input in forward and run the block again in backward.
  bool recompute = false;

  // Logits [B, T, V] of batch.ids().
  void logits(const Batch& batch, const Tensor& logits);

  // Final hidden states [B, S, C] of the encoder, which needs no decoder ids, or else of the
  // decoder.
  void encode(const Batch& batch, const Tensor& hidden);

  // Of batch.rows: logits of the classifier [R, labels], and what it reads [R, C].
  void label_logits(const Batch& batch, const Tensor& logits);
  void pooled(const Batch& batch, const Tensor& pooled);

  // Loss of every target, [R]; and their weighted sum.
  void row_losses(const Batch& batch, const Tensor& losses);
  LossSum loss(const Batch& batch);

  // A batch as kernels see it. What the CPU has to write for it is in the arena's inputs: on a GPU
  // the rest of a pass can be captured, and done again with what is written there next.
  struct Pass {
    Batch batch;
    Sequences encoder, decoder;
    Tensor row_scale;  // [R] weights over the total weight; to train
  };
  Pass prepare_gradients(const Context& context, const Batch& batch, double total_weight);

  // Adds d(sum of weighted losses / total_weight) to the gradients, and the losses to `state`; the
  // caller starts and finishes them (ParamStore::begin_gradients). `context` says which dropout
  // masks, if any.
  void add_gradients(const Context& context, const Pass& pass, StepState* state);

  // Keys and values of every decoder layer's cross-attention for sources ids [B, S], lengths [B]:
  // those of source b go to row rows[b] of `to` [L].
  void encode_memory(const Tensor& ids, const Tensor& lengths, const Tensor& rows,
                     const std::vector<LayerCache>& to);
  void decode(const DecodeArgs& args);

  // Attention weights of a batch, where the probes want them; nothing else is kept.
  void attention_weights(const Batch& batch, const AttentionProbes& probes);

 private:
  // Who the rows of a stack are; arrays are inputs, not uploaded yet.
  Sequences describe(const Context& context, const Stack& stack, const Tensor& ids,
                     const Tensor& lengths, const Tensor& past = {});
  Pass prepare(const Context& context, const Batch& batch, double total_weight = 0.0);
  void row_losses(const Context& context, const Pass& pass, const Tensor& losses);
  StackInput encoder_input(const Batch& batch) const;
  StackInput decoder_input(const Batch& batch) const;

  // Hidden states [N, C] without saving anything but the result: the encoder's; those that the head
  // reads.
  Tensor infer_encoder(const Context& context, const Pass& pass,
                       const AttentionProbes* probes = nullptr);
  Tensor infer(const Context& context, const Pass& pass, const AttentionProbes* probes = nullptr);
  Tensor selected_rows(const Context& context, const Batch& batch, const Tensor& hidden);

  Config config_;
  Device device_;
  const Kernels* kernels_;
  Queue* queue_;
  ParamStore params_;
  RopeTable rope_;
  Param tokens_;
  std::optional<Stack> encoder_, decoder_;
  Head head_;
  Classifier classifier_;
  Arena arena_;
  Captured decoding_{256};  // passes of so many numbers of texts and of keys
  std::mutex mutex_;
};

}  // namespace llmcore
