// Checks of the arguments of choosing tokens.
#include "ops/sampling.h"

#include "core/error.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

void check_device(const Context& context, const char* op) {
  CHECK(context.kernels->sampling != nullptr, DeviceError, op,
        ": logits must be on a GPU; on the CPU use choose_tokens");
}

void check(const Context& context, const char* op, const Tensor& logits) {
  const int64_t rows = logits.rows(), classes = logits.cols();
  check_device(context, op);
  check_tensor(op, "logits", logits, "[N, V]", {rows, classes});
  CHECK(classes >= 1 && classes <= kMostClasses, ShapeError, op, ": logits must have from 1 to ",
        kMostClasses, " columns, got ", classes);
}

}  // namespace

void best_tokens(const Context& context, const BestTokensArgs& args) {
  const char* op = "best_tokens";
  check(context, op, args.logits);
  const int64_t most = args.logits.cols() < kMostBest ? args.logits.cols() : kMostBest;
  const int64_t count = args.choices.rank == 3 ? args.choices.dim(1) : 0;
  CHECK(count >= 1 && count <= most, ShapeError, op, ": count must be from 1 to ", most, ", got ",
        count);
  check_tensor(op, "choices", args.choices, "[N, count, bytes]",
               {args.logits.rows(), count, static_cast<int64_t>(sizeof(Choice))}, DType::kInt8);
  if (args.logits.rows() > 0) context.kernels->sampling->best_tokens(context, args);
}

void sample_tokens(const Context& context, const SampleTokensArgs& args) {
  const char* op = "sample_tokens";
  check(context, op, args.logits);
  const int64_t count = args.settings.rows(), places = args.choices.rows();
  check_tensor(op, "settings", args.settings, "[n, bytes]",
               {count, static_cast<int64_t>(sizeof(SampleSettings))}, DType::kInt8);
  check_tensor(op, "choices", args.choices, "[M, bytes]",
               {places, static_cast<int64_t>(sizeof(Choice))}, DType::kInt8);
  check_optional(op, "ids", args.ids, "[M]", {places}, DType::kInt32);
  if (count > 0) context.kernels->sampling->sample_tokens(context, args);
}

void fill_ids(const Context& context, const FillIdsArgs& args) {
  const char* op = "fill_ids";
  check_device(context, op);
  const int64_t count = args.ids.numel();
  check_tensor(op, "ids", args.ids, "[N]", {count}, DType::kInt32);
  check_tensor(op, "from", args.from, "[N]", {count}, DType::kInt32);
  check_tensor(op, "chosen", args.chosen, "[M]", {args.chosen.numel()}, DType::kInt32);
  if (count > 0) context.kernels->sampling->fill_ids(context, args);
}

}  // namespace llmcore
