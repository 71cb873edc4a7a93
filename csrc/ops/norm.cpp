// Checks of the norms' arguments.
#include "ops/norm.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {
// On a GPU as many as run at a time where registers are full of sums, and at least one for each of
// its processors: blocks that come later find it empty.
constexpr int64_t kMaxPartials = 64, kMinPartialsOnGpu = 128, kSumsOnGpu = int64_t{3} << 18;
}  // namespace

int64_t norm_partials(const Context& context, int64_t rows, int64_t width) {
  const bool cpu = context.device.type == DeviceType::kCpu;
  return std::min(rows, cpu ? kMaxPartials : std::max(kMinPartialsOnGpu, kSumsOnGpu / width));
}

void norm_forward(const Context& context, const NormForwardArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  const DType dtype = activation_dtype("norm_forward", "x", context, args.x);
  check_tensor("norm_forward", "x", args.x, "[N, C]", {rows, width}, dtype);
  check_tensor("norm_forward", "y", args.y, "[N, C]", {rows, width}, dtype);
  check_optional("norm_forward", "weight", args.weight, "[C]", {width});
  check_optional("norm_forward", "bias", args.bias, "[C]", {width});
  check_optional("norm_forward", "mean", args.mean, "[N]", {rows});
  check_optional("norm_forward", "rstd", args.rstd, "[N]", {rows});
  if (rows * width > 0) context.kernels->norm->forward(context, args);
}

void normalise(const Context& context, const RowNorm& norm, const Tensor& x, const Tensor& y) {
  norm_forward(context, {.kind = norm.kind,
                         .eps = norm.eps,
                         .x = x,
                         .weight = norm.weight,
                         .bias = norm.bias,
                         .y = y});
}

void norm_backward(const Context& context, const NormBackwardArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  const DType dtype = activation_dtype("norm_backward", "x", context, args.x);
  check_tensor("norm_backward", "x", args.x, "[N, C]", {rows, width}, dtype);
  check_tensor("norm_backward", "dy", args.dy, "[N, C]", {rows, width}, dtype);
  check_tensor("norm_backward", "dx", args.dx, "[N, C]", {rows, width}, dtype);
  check_tensor("norm_backward", "rstd", args.rstd, "[N]", {rows});
  if (args.kind == NormKind::kLayer)
    check_tensor("norm_backward", "mean", args.mean, "[N]", {rows});
  check_optional("norm_backward", "weight", args.weight, "[C]", {width});
  check_optional("norm_backward", "dweight", args.dweight, "[C]", {width});
  check_optional("norm_backward", "dbias", args.dbias, "[C]", {width});
  if (rows * width == 0) return;
  ScratchScope scope(*context.arena);
  NormBackwardArgs call = args;
  call.partial =
      context.arena->scratch(DType::kFloat32, norm_partials(context, rows, width), 2, width);
  context.kernels->norm->backward(context, call);
}

}  // namespace llmcore
