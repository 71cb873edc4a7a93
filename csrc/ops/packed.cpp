// Checks of what is done with packed weights, and the scratch of their product.
#include "ops/packed.h"

#include "core/error.h"
#include "core/parallel.h"
#include "ops/checks.h"
#include "ops/embedding.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

void check_packed(const char* op, const Tensor& packed) {
  CHECK(packed.rank == 2 && is_packed(packed.dtype), DTypeError, op,
        ": packed must be a packed matrix [N, K], got ", shape_string(packed), " ",
        dtype_name(packed.dtype));
}

void check_rows(const char* op, const PackedRows& rows, int64_t count) {
  check_packed(op, rows.packed);
  CHECK(rows.first >= 0 && rows.first + count <= rows.packed.dim(0), ShapeError, op, ": outputs ",
        rows.first, " to ", rows.first + count, " are not in ", shape_string(rows.packed));
}

}  // namespace

void pack_weight(const Context& context, const PackArgs& args) {
  const int64_t rows = args.weight.rank == 2 ? args.weight.dim(0) : 0;
  check_rows("pack_weight", args.to, rows);
  const int64_t depth = args.to.packed.dim(1);
  check_tensor("pack_weight", "weight", args.weight, "[R, K]", {rows, depth});
  CHECK(depth >= 1 && depth <= kMaxPackedDepth, ShapeError, "pack_weight: K must be from 1 to ",
        kMaxPackedDepth, ", got ", depth);
  context.kernels->packed->pack(args);
}

void get_stored(const Context& context, const StoredRowsArgs& args) {
  check_rows("get_stored", args.of, args.rows);
  context.kernels->packed->get_stored(args);
}

void set_stored(const Context& context, const StoredRowsArgs& args) {
  check_rows("set_stored", args.of, args.rows);
  CHECK(context.kernels->packed->set_stored(args), ConfigError,
        "codes must be from -127 to 127, got -128");
}

void unpack_rows(const Context& context, const UnpackRowsArgs& args) {
  check_packed("unpack_rows", args.packed);
  check_ids(context, "unpack_rows", "rows", args.rows, args.packed.dim(0));
  check_tensor("unpack_rows", "out", args.out, "[R, K]", {args.rows.numel(), args.packed.dim(1)});
  context.kernels->packed->unpack_rows(context, args);
}

void packed_matmul(const Context& context, const MatmulArgs& args) {
  CHECK(args.transpose_b && !args.transpose_a, ConfigError,
        "matmul: packed weights only multiply as x W^T");
  ScratchScope scope(*context.arena);
  MatmulArgs call = args;
  call.workers = num_threads();
  call.scratch = context.arena->scratch(DType::kInt8, context.kernels->packed->scratch_bytes(call));
  context.kernels->packed->matmul(context, call);
}

}  // namespace llmcore
