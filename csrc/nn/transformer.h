// Transformer: a whole model. Decoder-only today; one config, no code per family.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "nn/batch.h"
#include "nn/embedding.h"
#include "nn/head.h"
#include "nn/rope_table.h"
#include "nn/stack.h"
#include "ops/kernels.h"

namespace llmcore {

class Transformer {
 public:
  // Weights are zero until initialise() or until a checkpoint is copied into parameters().
  Transformer(const Config& config, Device device);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  const Config& config() const { return config_; }
  ParamStore& params() { return params_; }
  Context context() { return {.device = device_, .kernels = kernels_, .arena = &arena_}; }
  Arena& arena() { return arena_; }

  // One call at a time may use a model's arena: every public entry takes this lock.
  std::mutex& mutex() { return mutex_; }

  // Keep only each block's input in forward and run the block again in backward.
  bool recompute = false;

  // Logits [B, T, V] and final hidden states [B, T, C] of batch.ids.
  void logits(const Batch& batch, const Tensor& logits);
  void encode(const Batch& batch, const Tensor& hidden);

  // Loss of every target, [R]; and their weighted sum.
  void row_losses(const Batch& batch, const Tensor& losses);
  LossSum loss(const Batch& batch);

  // Adds d(sum of weighted losses / total_weight) to the gradients; the caller starts and finishes
  // them (ParamStore::begin_gradients). `context` says which dropout masks, if any.
  LossSum add_gradients(const Context& context, const Batch& batch, double total_weight);

  // Logits [B, V] after the last of `lengths[b]` tokens of each row of ids [B, T], which stand at
  // positions past[b] on; keys and values go into `caches` [L]. Rows of length 0 are left alone.
  void decode(const Tensor& ids, const Tensor& lengths, const Tensor& past,
              const std::vector<LayerCache>& caches, const Tensor& logits);

 private:
  // Who the rows of a batch are; arrays live in the arena's keep end.
  Sequences describe(const Context& context, const Batch& batch, const int32_t* past);
  // Hidden states [N, C] without saving anything but the result.
  Tensor infer(const Context& context, const Batch& batch, const Sequences& sequences);
  Tensor selected_rows(const Context& context, const Batch& batch, const Tensor& hidden);

  Config config_;
  Device device_;
  const Kernels* kernels_;
  ParamStore params_;
  RopeTable rope_;
  Embedding embedding_;
  Stack stack_;
  Head head_;
  Arena arena_;
  std::mutex mutex_;
};

}  // namespace llmcore
