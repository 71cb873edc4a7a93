// Checks of the elementwise and row operations' arguments.
#include "ops/elementwise.h"

#include "ops/checks.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

void check_rows_in_range(const char* op, const HostInts& row, const Tensor& index, int64_t rows) {
  for (int64_t i = 0; i < index.numel(); ++i)
    CHECK(row[i] >= 0 && row[i] < rows, IndexError, op, ": index[", i, "] must be in [0, N) = [0, ",
          rows, "), got ", row[i]);
}

}  // namespace

void dropout(const Context& context, const DropoutArgs& args) {
  const float p = args.dropout.p;
  CHECK(p >= 0.0f && p < 1.0f, ConfigError, "dropout: p must be in [0, 1), got ", p);
  const DType dtype = activation_dtype("dropout", "x", context, args.x);
  check_like("dropout", "x", args.x, "x", args.x, dtype);
  check_like("dropout", "y", args.y, "x", args.x, dtype);
  if (args.residual) check_like("dropout", "residual", args.residual, "x", args.x, dtype);
  if (args.x.numel() > 0) context.kernels->elementwise->dropout(context, args);
}

void add(const Context& context, const AddArgs& args) {
  const DType dtype = activation_dtype("add", "a", context, args.a);
  check_like("add", "a", args.a, "a", args.a, dtype);
  check_like("add", "b", args.b, "a", args.a, dtype);
  check_like("add", "y", args.y, "a", args.a, dtype);
  if (args.y.numel() > 0) context.kernels->elementwise->add(context, args);
}

void scale(const Context& context, const ScaleArgs& args) {
  const DType dtype = activation_dtype("scale", "x", context, args.x);
  check_like("scale", "x", args.x, "x", args.x, dtype);
  check_like("scale", "y", args.y, "x", args.x, dtype);
  if (args.y.numel() > 0) context.kernels->elementwise->scale(context, args);
}

void fill(const Context& context, const FillArgs& args) {
  const DType dtype = activation_dtype("fill", "y", context, args.y);
  check_like("fill", "y", args.y, "y", args.y, dtype);
  if (args.y.numel() > 0) context.kernels->elementwise->fill(context, args);
}

void cast(const Context& context, const CastArgs& args) {
  const DType from = args.x.dtype, to = args.y.dtype;
  const auto is_half = [](DType type) {
    return type == DType::kBFloat16 || type == DType::kFloat16;
  };
  CHECK((from == DType::kFloat32 && is_half(to)) || (is_half(from) && to == DType::kFloat32),
        DTypeError, "cast: one of x and y must be float32, the other bfloat16 or float16, got ",
        dtype_name(from), " and ", dtype_name(to));
  check_like("cast", "x", args.x, "x", args.x, from);
  check_like("cast", "y", args.y, "x", args.x, to);
  if (args.y.numel() > 0) context.kernels->elementwise->cast(context, args);
}

void softmax(const Context& context, const SoftmaxArgs& args) {
  check_like("softmax", "x", args.x, "x", args.x);
  check_like("softmax", "y", args.y, "x", args.x);
  if (args.x.numel() > 0) context.kernels->elementwise->softmax(context, args);
}

void softmax_backward(const Context& context, const SoftmaxBackwardArgs& args) {
  check_like("softmax_backward", "y", args.y, "y", args.y);
  check_like("softmax_backward", "dy", args.dy, "y", args.y);
  check_like("softmax_backward", "dx", args.dx, "y", args.y);
  if (args.y.numel() > 0) context.kernels->elementwise->softmax_backward(context, args);
}

void copy_rows(const Context& context, const CopyRowsArgs& args) {
  CHECK(args.x_stride >= args.cols && args.y_stride >= args.cols, ShapeError,
        "copy_rows: strides must be at least C = ", args.cols, ", got ", args.x_stride, " and ",
        args.y_stride);
  if (args.rows * args.cols > 0) context.kernels->elementwise->copy_rows(context, args);
}

void transpose(const Context& context, const TransposeArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  check_tensor("transpose", "x", args.x, "[N, C]", {rows, width});
  check_tensor("transpose", "y", args.y, "[C, N]", {width, rows});
  if (rows * width > 0) context.kernels->elementwise->transpose(context, args);
}

void gather_rows(const Context& context, const GatherRowsArgs& args) {
  const int64_t rows = args.index.numel(), width = args.x.cols();
  const DType dtype = activation_dtype("gather_rows", "x", context, args.x);
  check_tensor("gather_rows", "x", args.x, "[N, C]", {args.x.rows(), width}, dtype);
  check_tensor("gather_rows", "index", args.index, "[R]", {rows}, DType::kInt32);
  check_tensor("gather_rows", "y", args.y, "[R, C]", {rows, width}, dtype);
  check_rows_in_range("gather_rows", HostInts(context, args.index), args.index, args.x.rows());
  if (args.y.numel() > 0) context.kernels->elementwise->gather_rows(context, args);
}

void scatter_rows(const Context& context, const ScatterRowsArgs& args) {
  const int64_t rows = args.index.numel(), width = args.x.cols();
  const DType dtype = activation_dtype("scatter_rows", "x", context, args.x);
  check_tensor("scatter_rows", "x", args.x, "[R, C]", {rows, width}, dtype);
  check_tensor("scatter_rows", "index", args.index, "[R]", {rows}, DType::kInt32);
  check_tensor("scatter_rows", "y", args.y, "[N, C]", {args.y.rows(), width}, dtype);
  const HostInts row(context, args.index);
  check_rows_in_range("scatter_rows", row, args.index, args.y.rows());
  for (int64_t i = 1; i < rows; ++i)
    CHECK(row[i - 1] <= row[i], ShapeError, "scatter_rows: index must be ascending, got ",
          row[i - 1], " before ", row[i], " at ", i);
  if (args.y.numel() > 0) context.kernels->elementwise->scatter_rows(context, args);
}

}  // namespace llmcore
