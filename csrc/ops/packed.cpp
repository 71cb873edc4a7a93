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

// `tensor` [R, K] is some of the packed matrix's outputs.
void check_rows(const char* op, const char* name, const Tensor& tensor, const PackedRows& rows,
                DType dtype) {
  check_packed(op, rows.packed);
  const int64_t count = tensor.rank == 2 ? tensor.dim(0) : 0;
  check_tensor(op, name, tensor, "[R, K]", {count, rows.packed.dim(1)}, dtype);
  CHECK(rows.first >= 0 && rows.first + count <= rows.packed.dim(0), ShapeError, op, ": outputs ",
        rows.first, " to ", rows.first + count, " are not in ", shape_string(rows.packed));
}

void check_codes(const char* op, const CodesArgs& args) {
  check_rows(op, "codes", args.codes, args.of, DType::kInt8);
  const DType format = args.of.packed.dtype;
  CHECK(format != DType::kPackedBFloat16, DTypeError, op, ": bfloat16 weights have no codes");
  const int64_t rows = args.codes.dim(0), depth = args.codes.dim(1);
  if (format == DType::kPackedInt8)
    check_tensor(op, "scales", args.scales, "[R]", {rows});
  else
    check_tensor(op, "scales", args.scales, "[R, ceil(K / 32)]",
                 {rows, (depth + kInt4Group - 1) / kInt4Group});
}

}  // namespace

void pack_weight(const Context& context, const PackArgs& args) {
  check_rows("pack_weight", "weight", args.weight, args.to, DType::kFloat32);
  const int64_t depth = args.weight.dim(1);
  CHECK(depth >= 1 && depth <= kMaxPackedDepth, ShapeError, "pack_weight: K must be from 1 to ",
        kMaxPackedDepth, ", got ", depth);
  context.kernels->packed->pack(args);
}

void get_codes(const Context& context, const CodesArgs& args) {
  check_codes("get_codes", args);
  context.kernels->packed->get_codes(args);
}

void set_codes(const Context& context, const CodesArgs& args) {
  check_codes("set_codes", args);
  const bool wide = args.of.packed.dtype == DType::kPackedInt8;
  const int low = wide ? -127 : -8, high = wide ? 127 : 7;
  const int8_t* codes = args.codes.as<int8_t>();
  for (int64_t i = 0; i < args.codes.numel(); ++i)
    CHECK(codes[i] >= low && codes[i] <= high, ConfigError, "set_codes: codes[",
          i / args.codes.dim(1), ", ", i % args.codes.dim(1), "] = ", static_cast<int>(codes[i]),
          " is outside [", low, ", ", high, "]");
  context.kernels->packed->set_codes(args);
}

void unpack_rows(const Context& context, const UnpackRowsArgs& args) {
  check_packed("unpack_rows", args.packed);
  check_ids("unpack_rows", "rows", args.rows, args.packed.dim(0));
  check_tensor("unpack_rows", "out", args.out, "[R, K]", {args.rows.numel(), args.packed.dim(1)});
  context.kernels->packed->unpack_rows(args);
}

void packed_matmul(const Context& context, const MatmulArgs& args) {
  CHECK(args.transpose_b && !args.transpose_a, ConfigError,
        "matmul: packed weights only multiply as x W^T");
  ScratchScope scope(*context.arena);
  MatmulArgs call = args;
  call.workers = num_threads();
  call.scratch = context.arena->scratch(DType::kInt8, context.kernels->packed->scratch_bytes(call));
  context.kernels->packed->matmul(call);
}

}  // namespace llmcore
