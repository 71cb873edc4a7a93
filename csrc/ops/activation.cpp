// Checks of the activations' arguments.
#include "ops/activation.h"

#include "ops/checks.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

int64_t checked_stride(const char* op, const char* name, int64_t stride, int64_t width) {
  if (stride == 0) return width;
  CHECK(stride >= width, ShapeError, op, ": ", name, " must be at least F = ", width, ", got ",
        stride);
  return stride;
}

}  // namespace

Activation activation_from_name(const char* name) {
  const std::string wanted = name;
  if (wanted == "none") return Activation::kNone;
  if (wanted == "relu") return Activation::kRelu;
  if (wanted == "gelu") return Activation::kGelu;
  if (wanted == "gelu_tanh") return Activation::kGeluTanh;
  if (wanted == "silu") return Activation::kSilu;
  throw ConfigError(
      str("activation must be 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu', got '", name, "'"));
}

void activation_forward(const Context& context, const ActivationArgs& args) {
  const DType dtype = activation_dtype("activation_forward", "x", context, args.x);
  check_like("activation_forward", "x", args.x, "x", args.x, dtype);
  check_like("activation_forward", "y", args.y, "x", args.x, dtype);
  if (args.x.numel() > 0) context.kernels->activation->forward(context, args);
}

void activation_backward(const Context& context, const ActivationBackwardArgs& args) {
  const DType dtype = activation_dtype("activation_backward", "x", context, args.x);
  check_like("activation_backward", "x", args.x, "x", args.x, dtype);
  check_like("activation_backward", "dy", args.dy, "x", args.x, dtype);
  check_like("activation_backward", "dx", args.dx, "x", args.x, dtype);
  if (args.x.numel() > 0) context.kernels->activation->backward(context, args);
}

void gated_forward(const Context& context, const GatedArgs& args) {
  const char* op = "gated_forward";
  const DType dtype = activation_dtype(op, "gate", context, args.gate);
  check_like(op, "gate", args.gate, "gate", args.gate, dtype);
  check_like(op, "up", args.up, "gate", args.gate, dtype);
  check_like(op, "y", args.y, "gate", args.gate, dtype);
  if (args.y.numel() == 0) return;
  GatedArgs call = args;
  call.row_stride = checked_stride(op, "row_stride", args.row_stride, args.y.cols());
  context.kernels->activation->gated_forward(context, call);
}

void gated_backward(const Context& context, const GatedBackwardArgs& args) {
  const char* op = "gated_backward";
  const DType dtype = activation_dtype(op, "gate", context, args.gate);
  check_like(op, "gate", args.gate, "gate", args.gate, dtype);
  check_like(op, "up", args.up, "gate", args.gate, dtype);
  check_like(op, "dy", args.dy, "gate", args.gate, dtype);
  check_like(op, "dgate", args.dgate, "gate", args.gate, dtype);
  check_like(op, "dup", args.dup, "gate", args.gate, dtype);
  if (args.dy.numel() == 0) return;
  GatedBackwardArgs call = args;
  call.row_stride = checked_stride(op, "row_stride", args.row_stride, args.dy.cols());
  call.drow_stride = checked_stride(op, "drow_stride", args.drow_stride, args.dy.cols());
  context.kernels->activation->gated_backward(context, call);
}

}  // namespace llmcore
