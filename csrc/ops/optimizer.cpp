// Checks of the optimizer's arguments.
#include "ops/optimizer.h"

#include "core/error.h"
#include "ops/kernels.h"

namespace llmcore {

void adamw(const Context& context, const AdamWArgs& args) {
  const int64_t n = args.param.numel();
  check_tensor("adamw", "param", args.param, "[n]", {n});
  check_tensor("adamw", "grad", args.grad, "[n]", {n});
  check_tensor("adamw", "m", args.m, "[n]", {n});
  check_tensor("adamw", "v", args.v, "[n]", {n});
  // Written so that NaN fails too.
  CHECK(args.lr >= 0, ConfigError, "adamw: lr must be at least 0, got ", args.lr);
  CHECK(args.beta1 >= 0 && args.beta1 < 1, ConfigError, "adamw: beta1 must be in [0, 1), got ",
        args.beta1);
  CHECK(args.beta2 >= 0 && args.beta2 < 1, ConfigError, "adamw: beta2 must be in [0, 1), got ",
        args.beta2);
  CHECK(args.eps >= 0, ConfigError, "adamw: eps must be at least 0, got ", args.eps);
  CHECK(args.weight_decay >= 0, ConfigError, "adamw: weight_decay must be at least 0, got ",
        args.weight_decay);
  CHECK(args.step >= 1, ConfigError, "adamw: step counts from 1, got ", args.step);
  if (n > 0) context.kernels->optimizer->adamw(context, args);
}

double square_sum(const Context& context, const Tensor& x) {
  const int64_t n = x.numel();
  check_tensor("square_sum", "x", x, "[n]", {n});
  if (n == 0) return 0.0;
  const int64_t blocks = (n + kSquareSumBlock - 1) / kSquareSumBlock;
  ScratchScope scope(*context.arena);
  auto* partial = static_cast<double*>(context.arena->scratch_bytes(blocks * sizeof(double)));
  context.kernels->optimizer->square_sum(context, {.x = x, .partial = partial});
  double sum = 0.0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block];
  return sum;
}

}  // namespace llmcore
