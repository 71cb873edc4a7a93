// TrainStep: forward, backward, clip and AdamW over one or several micro-batches.
#pragma once

#include <limits>
#include <vector>

#include "nn/transformer.h"

namespace llmcore {

struct AdamWOptions {
  double lr = 0.0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  double max_grad_norm = std::numeric_limits<double>::infinity();
  // The update is skipped where loss or norm is above these or is not finite.
  double max_loss = std::numeric_limits<double>::infinity();
  double max_norm = std::numeric_limits<double>::infinity();
};

struct StepResult {
  double loss = 0.0;       // mean over the targets of all micro-batches
  double grad_norm = 0.0;  // before clipping
  double targets = 0.0;    // their total weight
  bool skipped = false;
};

class TrainStep {
 public:
  // With `bfloat16` products, attention's too, round their operands to it; weights, moments and
  // everything else are float all the same.
  TrainStep(Transformer& model, uint64_t dropout_seed, bool bfloat16 = false);

  StepResult step(const std::vector<Batch>& micro_batches, const AdamWOptions& options);

  // First and second moments, flat, in the parameters' layout.
  Tensor first_moment() const { return f32_view(m_.data(), size_); }
  Tensor second_moment() const { return f32_view(v_.data(), size_); }

  // Calls of step() so far: numbers the dropout masks. Updates so far: AdamW's bias correction.
  int64_t calls = 0;
  int64_t updates = 0;
  uint64_t dropout_seed = 0;

 private:
  void update(const Context& context, const AdamWOptions& options, float grad_scale);

  Transformer& model_;
  bool bfloat16_;
  int64_t size_;
  Buffer m_, v_;
};

// Bytes that steps on such batches take beside weights, gradients and moments: what the arena of
// `model`, made of addresses alone, is asked for when a step runs with kernels that do nothing.
int64_t planned_bytes(Transformer& model, const Batch& batch, bool bfloat16);

// Loss of one batch with its gradients left in the model; dropout is off.
LossSum loss_and_gradients(Transformer& model, const Batch& batch);

}  // namespace llmcore
