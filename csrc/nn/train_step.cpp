// The optimizer step.
#include "nn/train_step.h"

#include <cmath>

#include "core/error.h"
#include "ops/idle.h"
#include "ops/optimizer.h"

namespace llmcore {
namespace {

double total_weight(const std::vector<Batch>& batches) {
  double total = 0.0;
  for (const Batch& batch : batches)
    for (int64_t r = 0; r < batch.weights.numel(); ++r) total += batch.weights.f32()[r];
  CHECK(total > 0.0, ConfigError, "train step: the batch has no targets with a weight above zero");
  return total;
}

// Sum over micro-batches, each divided by the weight of all, so that any split gives one mean.
LossSum accumulate(Transformer& model, Context context, const std::vector<Batch>& batches) {
  const double weight = total_weight(batches);
  LossSum total;
  model.params().begin_gradients();
  for (const Batch& batch : batches) {
    const LossSum part = model.add_gradients(context, batch, weight);
    total.sum += part.sum;
    total.weight += part.weight;
    ++context.micro_batch;
  }
  model.params().finish_gradients(context);
  return total;
}

// Parameters that lie side by side in the flat buffers.
struct Run {
  int64_t begin, end;
  bool decay;
};

// The trainable parameters, in order; where weight decay changes a new run begins, if `split`.
std::vector<Run> trainable_runs(const ParamStore& params, bool split) {
  std::vector<Run> runs;
  for (const ParamInfo& info : params.table()) {
    if (!info.trainable) continue;
    const int64_t end = info.offset + info.size;
    if (runs.empty() || runs.back().end < info.offset || (split && runs.back().decay != info.decay))
      runs.push_back({.begin = info.offset, .end = end, .decay = info.decay});
    else
      runs.back().end = end;
  }
  return runs;
}

Tensor slice(const Tensor& flat, const Run& run) {
  return f32_view(flat.f32() + run.begin, run.end - run.begin);
}

double gradient_norm(const Context& context, ParamStore& params) {
  double total = 0.0;
  for (const Run& run : trainable_runs(params, false))
    total += square_sum(context, slice(params.gradients(), run));
  return std::sqrt(total);
}

}  // namespace

TrainStep::TrainStep(Transformer& model, uint64_t dropout_seed, bool bfloat16)
    : dropout_seed(dropout_seed),
      model_(model),
      bfloat16_(bfloat16),
      size_(model.params().size()),
      m_(size_ * static_cast<int64_t>(sizeof(float))),
      v_(size_ * static_cast<int64_t>(sizeof(float))) {
  model.params().gradients();
}

StepResult TrainStep::step(const std::vector<Batch>& micro_batches, const AdamWOptions& options) {
  CHECK(!trainable_runs(model_.params(), false).empty(), ConfigError,
        "train step: every parameter is frozen; unfreeze those to be trained");
  Context context = model_.context();
  context.bfloat16 = bfloat16_;
  context.training = true;
  context.dropout_seed = dropout_seed;
  context.step = static_cast<uint32_t>(calls++);
  const LossSum total = accumulate(model_, context, micro_batches);

  StepResult result{.loss = total.sum / total.weight, .targets = total.weight};
  result.grad_norm = gradient_norm(context, model_.params());
  result.skipped = !(std::isfinite(result.loss) && std::isfinite(result.grad_norm) &&
                     result.loss <= options.max_loss && result.grad_norm <= options.max_norm);
  if (result.skipped) return result;
  const double clip = result.grad_norm > options.max_grad_norm
                          ? options.max_grad_norm / (result.grad_norm + 1e-6)
                          : 1.0;
  update(context, options, static_cast<float>(clip));
  return result;
}

// One call for each run of parameters that share their weight decay. Moments of frozen parameters
// are not touched: they take no memory.
void TrainStep::update(const Context& context, const AdamWOptions& options, float grad_scale) {
  ++updates;
  ParamStore& params = model_.params();
  for (const Run& run : trainable_runs(params, true))
    adamw(context, {.lr = options.lr,
                    .beta1 = options.beta1,
                    .beta2 = options.beta2,
                    .eps = options.eps,
                    .weight_decay = run.decay ? options.weight_decay : 0.0,
                    .step = updates,
                    .grad_scale = grad_scale,
                    .param = slice(params.weights(), run),
                    .m = slice(first_moment(), run),
                    .v = slice(second_moment(), run),
                    .grad = slice(params.gradients(), run)});
}

int64_t planned_bytes(Transformer& model, const Batch& batch, bool bfloat16) {
  Context context = model.context();
  const IdleKernels idle(*context.kernels);
  context.kernels = &idle.table;
  context.bfloat16 = bfloat16;
  context.training = true;
  accumulate(model, context, {batch});
  gradient_norm(context, model.params());
  return model.arena().peak_bytes();
}

LossSum loss_and_gradients(Transformer& model, const Batch& batch) {
  return accumulate(model, model.context(), {batch});
}

}  // namespace llmcore
