// Checks of the losses' arguments, and the fused output layer, which is made of other operations.
#include "ops/cross_entropy.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/elementwise.h"
#include "ops/kernels.h"
#include "ops/matmul.h"
#include "ops/packed.h"

namespace llmcore {
namespace {

// What both losses share: N rows of V classes.
void check_targets(const Context& context, const char* op, const Tensor& targets,
                   const Tensor& losses, float smoothing, int64_t rows, int64_t classes) {
  CHECK(smoothing >= 0.0f && smoothing <= 1.0f, ConfigError, op,
        ": label_smoothing must be in [0, 1], got ", smoothing);
  check_tensor(op, "targets", targets, "[N]", {rows}, DType::kInt32);
  check_tensor(op, "losses", losses, "[N]", {rows});
  const HostInts target(context, targets);
  for (int64_t n = 0; n < rows; ++n)
    CHECK(target[n] < classes, IndexError, op, ": target ", target[n], " at row ", n,
          " is outside the ", classes, " classes");
}

// Rows whose logits are held at a time, by V alone. Every chunk reads and writes all of dweight,
// and at 80 rows that took a quarter of the time at GPT-2's sizes; at 256 the logits are still a
// fraction, 256 / C, of the weight. Small vocabularies take more rows, up to 16 MB; a GPU, whose
// products want many rows, up to 1 GiB.
int64_t rows_per_chunk(Device device, int64_t classes, DType dtype) {
  constexpr int64_t kMinRows = 256;
  const int64_t bytes = device.type == DeviceType::kCpu ? int64_t{16} << 20 : int64_t{1} << 30;
  return std::max(kMinRows, bytes / (classes * dtype_size(dtype)));
}

// From one row of logits to the next. A GPU's products are fast where rows are aligned, whatever V;
// packed weights have a kernel of their own.
int64_t row_stride(Device device, int64_t classes, DType weight) {
  constexpr int64_t kAlign = 64;
  if (device.type == DeviceType::kCpu || is_packed(weight)) return classes;
  return (classes + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  const char* op = "cross_entropy";
  const int64_t rows = args.logits.rows(), classes = args.logits.cols();
  const DType dtype = activation_dtype(op, "logits", context, args.logits);
  check_tensor(op, "logits", args.logits, "[N, V]", {rows, classes}, dtype);
  check_targets(context, op, args.targets, args.losses, args.label_smoothing, rows, classes);
  check_optional(op, "class_weight", args.class_weight, "[V]", {classes});
  check_optional(op, "dlogits", args.dlogits, "[N, V]", {rows, classes}, dtype);
  if (args.dlogits) check_tensor(op, "row_scale", args.row_scale, "[N]", {rows});
  check_stride(op, "logits", context, args.logits, args.stride);
  if (rows * classes > 0) context.kernels->cross_entropy->cross_entropy(context, args);
}

void linear_cross_entropy(const Context& context, const LinearCrossEntropyArgs& args) {
  const char* op = "linear_cross_entropy";
  const int64_t rows = args.hidden.rows(), width = args.hidden.cols(), classes = args.weight.rows();
  const DType dtype = activation_dtype(op, "hidden", context, args.hidden);
  check_tensor(op, "hidden", args.hidden, "[N, C]", {rows, width}, dtype);
  const bool backward = args.dhidden || args.dweight || args.dbias;
  check_tensor(op, "weight", args.weight, "[V, C]", {classes, width},
               is_packed(args.weight.dtype) && !backward
                   ? args.weight.dtype
                   : activation_dtype(op, "weight", context, args.weight));
  check_optional(op, "bias", args.bias, "[V]", {classes});
  check_targets(context, op, args.targets, args.losses, args.label_smoothing, rows, classes);
  check_optional(op, "dhidden", args.dhidden, "[N, C]", {rows, width}, dtype);
  check_optional(op, "dweight", args.dweight, "[V, C]", {classes, width});
  check_optional(op, "dbias", args.dbias, "[V]", {classes});
  if (backward) check_tensor(op, "row_scale", args.row_scale, "[N]", {rows});
  if (rows == 0 || classes == 0) return;

  ScratchScope scope(*context.arena);
  const int64_t columns = row_stride(context.device, classes, args.weight.dtype);
  const int64_t stride = columns > classes ? columns : 0;  // of `logits`
  const int64_t chunk = std::min(rows, rows_per_chunk(context.device, columns, dtype));
  const Tensor buffer = context.arena->scratch(dtype, chunk, columns);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const Tensor padded = row_slice(buffer, 0, count);
    const Tensor logits = reshaped(padded, count, classes);  // becomes its gradient in place
    const Tensor hidden = row_slice(args.hidden, begin, count);
    const auto rescale = [&] {
      if (args.logit_scale != 1.0f)
        scale(context, {.factor = args.logit_scale, .x = padded, .y = padded});
    };
    matmul(context, {.a = hidden,
                     .b = args.weight,
                     .c = logits,
                     .transpose_b = true,
                     .c_stride = stride,
                     .bias = args.bias});
    rescale();
    cross_entropy(context,
                  {.logits = logits,
                   .targets = row_slice(args.targets, begin, count),
                   .label_smoothing = args.label_smoothing,
                   .losses = row_slice(args.losses, begin, count),
                   .row_scale = backward ? row_slice(args.row_scale, begin, count) : Tensor{},
                   .dlogits = backward ? logits : Tensor{},
                   .stride = stride});
    if (!backward) continue;
    rescale();
    if (args.dbias) column_sum(context, {.x = logits, .x_stride = stride, .out = args.dbias});
    if (args.dweight)
      matmul(context, {.a = logits,
                       .b = hidden,
                       .c = args.dweight,
                       .transpose_a = true,
                       .accumulate = begin > 0 || !args.overwrite,
                       .a_stride = stride});
    if (args.dhidden)  // last, since it may be hidden
      matmul(context, {.a = logits,
                       .b = args.weight,
                       .c = row_slice(args.dhidden, begin, count),
                       .a_stride = stride});
  }
}

}  // namespace llmcore
