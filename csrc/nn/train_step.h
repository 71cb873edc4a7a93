// TrainStep: forward, backward, clip and AdamW over one or several micro-batches.
#pragma once

#include <memory>
#include <vector>

#include "core/captured.h"
#include "nn/transformer.h"

namespace llmcore {

struct StepResult {
  double loss = 0.0;       // mean over the targets of all micro-batches
  double grad_norm = 0.0;  // before clipping
  double targets = 0.0;    // their total weight
  bool skipped = false;
};

// What a step finds out, once it is done: on a GPU it may still be at work.
class StepReport {
 public:
  StepReport() = default;
  ~StepReport();
  StepReport(const StepReport&) = delete;
  StepReport& operator=(const StepReport&) = delete;

  // Copies the state as it will be when all that was asked of the queue so far is done.
  void take(const Context& context, const StepState* state);
  // Waits for that.
  StepResult get();

 private:
  StepState found_{};
  StepState* pinned_ = nullptr;  // where a GPU writes it
  gpu::Event done_;
};

class TrainStep {
 public:
  // With `bfloat16` products, attention's too, round their operands to it; weights, moments and
  // everything else are float all the same.
  TrainStep(Transformer& model, uint64_t dropout_seed, bool bfloat16 = false);

  // Throws ConfigError for a setting out of its range.
  std::shared_ptr<StepReport> step(const std::vector<Batch>& micro_batches,
                                   const StepSettings& settings);

  // First and second moments, flat, in the parameters' layout.
  Tensor first_moment() const { return moment(m_); }
  Tensor second_moment() const { return moment(v_); }

  // Updates so far: AdamW's bias correction.
  int64_t updates() const;
  void set_updates(int64_t count);

  // Calls of step() so far: numbers the dropout masks.
  int64_t calls = 0;
  uint64_t dropout_seed = 0;

 private:
  void run(const Context& context, const std::vector<Transformer::Pass>& passes,
           const Tensor& told);
  void find_parts();
  std::shared_ptr<StepReport> free_report();
  Tensor moment(const Buffer& buffer) const;
  StepState* state() const { return static_cast<StepState*>(state_.data()); }

  Transformer& model_;
  bool bfloat16_;
  int64_t size_;
  Buffer m_, v_;
  Buffer state_;  // StepState
  Buffer parts_;  // FlatPart [part_count_] of the trainable parameters
  int64_t part_count_ = 0, parts_version_ = -1;
  Captured captured_{4};
  std::vector<std::shared_ptr<StepReport>> reports_;  // to be used again once nobody holds them
};

// Bytes that a step on such batches takes beside weights, gradients and moments: what the arena of
// `model`, made of addresses alone, is asked for when a step runs with kernels that do nothing, and
// a GPU's inputs.
int64_t planned_bytes(Transformer& model, const std::vector<Batch>& micro_batches, bool bfloat16);

// Loss of one batch with its gradients left in the model; dropout is off.
LossSum loss_and_gradients(Transformer& model, const Batch& batch);

}  // namespace llmcore
