// Checks of the optimizer's arguments.
#include "ops/optimizer.h"

#include <algorithm>

#include "core/error.h"
#include "core/queue.h"
#include "ops/kernels.h"

namespace llmcore {

void check_adamw(const AdamWSettings& settings, int64_t step) {
  // Written so that NaN fails too.
  CHECK(settings.lr >= 0, ConfigError, "adamw: lr must be at least 0, got ", settings.lr);
  CHECK(settings.beta1 >= 0 && settings.beta1 < 1, ConfigError,
        "adamw: beta1 must be in [0, 1), got ", settings.beta1);
  CHECK(settings.beta2 >= 0 && settings.beta2 < 1, ConfigError,
        "adamw: beta2 must be in [0, 1), got ", settings.beta2);
  CHECK(settings.eps >= 0, ConfigError, "adamw: eps must be at least 0, got ", settings.eps);
  CHECK(settings.weight_decay >= 0, ConfigError, "adamw: weight_decay must be at least 0, got ",
        settings.weight_decay);
  CHECK(step >= 1, ConfigError, "adamw: step counts from 1, got ", step);
}

void adamw(const Context& context, const AdamWArgs& args) {
  const int64_t n = args.param.numel();
  check_tensor("adamw", "param", args.param, "[n]", {n});
  check_tensor("adamw", "grad", args.grad, "[n]", {n});
  check_tensor("adamw", "m", args.m, "[n]", {n});
  check_tensor("adamw", "v", args.v, "[n]", {n});
  if (n > 0) context.kernels->optimizer->adamw(context, args);
}

void add_square_sum(const Context& context, SquareSumArgs args) {
  const int64_t n = args.x.numel();
  check_tensor("square_sum", "x", args.x, "[n]", {n});
  if (n == 0) return;
  static_assert(kFlatPart <= kSquareSumBlock);
  const int64_t count = std::max(args.parts.count, (n + kFlatPart - 1) / kFlatPart);
  ScratchScope scope(*context.arena);
  args.partial = static_cast<double*>(context.arena->scratch_bytes(count * sizeof(double)));
  context.kernels->optimizer->square_sum(context, args);
}

double square_sum(const Context& context, const Tensor& x) {
  ScratchScope scope(*context.arena);
  auto* state = static_cast<StepState*>(context.arena->scratch_bytes(sizeof(StepState)));
  begin_step(context, state);
  add_square_sum(context, {.x = x, .sum = &state->square_sum});
  return read_state(context, state).square_sum;
}

void begin_step(const Context& context, StepState* state) {
  context.kernels->optimizer->begin(context, state);
}

void weighted_sum(const Context& context, const WeightedSumArgs& args) {
  const int64_t rows = args.losses.numel();
  check_tensor("weighted_sum", "losses", args.losses, "[R]", {rows});
  check_tensor("weighted_sum", "weights", args.weights, "[R]", {rows});
  if (rows > 0) context.kernels->optimizer->weighted_sum(context, args);
}

void decide_step(const Context& context, const DecideArgs& args) {
  context.kernels->optimizer->decide(context, args);
}

StepState read_state(const Context& context, const StepState* state) {
  StepState copy;
  copy_bytes(context.queue, &copy, state, sizeof(copy));
  wait(context.queue);
  return copy;
}

}  // namespace llmcore
