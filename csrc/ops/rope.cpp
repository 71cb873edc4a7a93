// Checks of the rotary embedding's arguments.
#include "ops/rope.h"

#include "core/error.h"
#include "ops/embedding.h"
#include "ops/kernels.h"

namespace llmcore {

void rope(const Context& context, const RopeArgs& args) {
  const int64_t rotary = args.rotary_dim;
  CHECK(rotary >= 2 && rotary % 2 == 0 && rotary <= args.head_dim, ShapeError,
        "rope: rotary_dim must be even and from 2 to D = ", args.head_dim, ", got ", rotary);
  const int64_t table_rows = args.cos.rows();
  check_tensor("rope", "cos", args.cos, "[P, R/2]", {table_rows, rotary / 2});
  check_tensor("rope", "sin", args.sin, "[P, R/2]", {table_rows, rotary / 2});
  check_tensor("rope", "position_ids", args.positions, "[B, T]", {args.batch, args.rows},
               DType::kInt32);
  check_ids(context, "rope", "position_ids", args.positions, table_rows);
  if (args.batch * args.rows * args.heads > 0) context.kernels->rope->rotate(context, args);
}

}  // namespace llmcore
