// The optimizer step.
#include "nn/train_step.h"

#include <cmath>

#include "core/error.h"
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

}  // namespace

TrainStep::TrainStep(Transformer& model, uint64_t dropout_seed)
    : dropout_seed(dropout_seed),
      model_(model),
      size_(model.params().size()),
      m_(size_ * static_cast<int64_t>(sizeof(float))),
      v_(size_ * static_cast<int64_t>(sizeof(float))) {}

StepResult TrainStep::step(const std::vector<Batch>& micro_batches, const AdamWOptions& options) {
  Context context = model_.context();
  context.training = true;
  context.dropout_seed = dropout_seed;
  context.step = static_cast<uint32_t>(calls++);
  const LossSum total = accumulate(model_, context, micro_batches);

  StepResult result{.loss = total.sum / total.weight, .targets = total.weight};
  result.grad_norm = std::sqrt(square_sum(context, model_.params().gradients()));
  result.skipped = !(std::isfinite(result.loss) && std::isfinite(result.grad_norm) &&
                     result.loss <= options.max_loss && result.grad_norm <= options.max_norm);
  if (result.skipped) return result;
  const double clip = result.grad_norm > options.max_grad_norm
                          ? options.max_grad_norm / (result.grad_norm + 1e-6)
                          : 1.0;
  update(context, options, static_cast<float>(clip));
  return result;
}

// One call for each run of parameters that share their weight decay.
void TrainStep::update(const Context& context, const AdamWOptions& options, float grad_scale) {
  ++updates;
  const std::vector<ParamInfo>& table = model_.params().table();
  const auto slice = [](const Tensor& flat, int64_t begin, int64_t end) {
    return f32_view(flat.f32() + begin, end - begin);
  };
  for (size_t first = 0, last = 0; first < table.size(); first = last) {
    while (last < table.size() && table[last].decay == table[first].decay) ++last;
    const int64_t begin = table[first].offset;
    const int64_t end = last < table.size() ? table[last].offset : size_;
    adamw(context, {.lr = options.lr,
                    .beta1 = options.beta1,
                    .beta2 = options.beta2,
                    .eps = options.eps,
                    .weight_decay = table[first].decay ? options.weight_decay : 0.0,
                    .step = updates,
                    .grad_scale = grad_scale,
                    .param = slice(model_.params().weights(), begin, end),
                    .m = slice(first_moment(), begin, end),
                    .v = slice(second_moment(), begin, end),
                    .grad = slice(model_.params().gradients(), begin, end)});
  }
}

LossSum loss_and_gradients(Transformer& model, const Batch& batch) {
  return accumulate(model, model.context(), {batch});
}

}  // namespace llmcore
