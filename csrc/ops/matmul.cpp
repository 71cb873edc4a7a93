// Checks of the matrix products' arguments, their scratch, and the loop over a batch.
#include "ops/matmul.h"

#include "core/parallel.h"
#include "ops/checks.h"
#include "ops/kernels.h"
#include "ops/packed.h"

namespace llmcore {
namespace {

// Fewer multiply-adds than this in one matrix of a batch: whole matrices go to threads.
constexpr int64_t kSmallProduct = 1 << 22;
constexpr int64_t kColumnSumPartials = 64;

struct Sizes {
  int64_t m, n, k;
};

// Checks everything but C's leading axes, which `batched` products have one of.
Sizes check_product(const Context& context, const char* op, const MatmulArgs& args, int rank) {
  const Tensor &a = args.a, &b = args.b;
  CHECK(a.rank == rank && b.rank == rank && args.c.rank == rank, ShapeError, op,
        ": a, b and c must have ", rank, " axes, got ", shape_string(a), ", ", shape_string(b),
        " and ", shape_string(args.c));
  const Sizes sizes{args.transpose_a ? a.dim(-1) : a.dim(-2),
                    args.transpose_b ? b.dim(-2) : b.dim(-1),
                    args.transpose_a ? a.dim(-2) : a.dim(-1)};
  const int64_t k = args.transpose_b ? b.dim(-1) : b.dim(-2);
  CHECK(k == sizes.k, ShapeError, op, ": the inner sizes must agree, a ", shape_string(a),
        args.transpose_a ? " transposed" : "", " has ", sizes.k, ", b ", shape_string(b),
        args.transpose_b ? " transposed" : "", " has ", k);
  for (const Tensor* tensor : {&args.a, &args.b, &args.c})
    if (rank == 3 || tensor != &args.b || !is_packed(tensor->dtype))
      activation_dtype(op, "a, b and c", context, *tensor);
  const bool epilogue = args.bias || args.pre_activation || args.gate_input || args.residual ||
                        args.activation != Activation::kNone || args.dropout.p > 0.0f;
  CHECK(!(args.accumulate && epilogue), ConfigError, op,
        ": accumulate cannot be combined with bias, activation, gate, dropout or residual");
  check_stride(op, "a", context, a, args.a_stride);
  check_stride(op, "c", context, args.c, args.c_stride);
  CHECK((args.a_stride == 0 && args.c_stride == 0) || (rank == 2 && !is_packed(b.dtype)),
        ConfigError, op, ": rows are dense in batches and beside packed weights");
  return sizes;
}

void run(const Context& context, const MatmulArgs& args) {
  ScratchScope scope(*context.arena);
  MatmulArgs call = args;
  call.workers = num_threads();
  const auto scratch = [&](int64_t bytes) {
    call.scratch = context.arena->scratch(DType::kInt8, bytes);
  };
  if (context.bfloat16) {
    scratch(context.kernels->matmul_bfloat16->scratch_bytes(call));
    return context.kernels->matmul_bfloat16->matmul(context, call);
  }
  scratch(context.kernels->matmul->scratch_bytes(call));
  context.kernels->matmul->matmul(context, call);
}

bool normalises(const Context& context, const MatmulArgs& args) {
  if (is_packed(args.b.dtype)) return context.kernels->packed->normalises;
  const auto said = context.kernels->matmul->normalises;
  return said != nullptr && said(args);
}

// Matrix `index` of a rank 3 tensor, or its only one.
Tensor matrix(const Tensor& tensor, int64_t index) {
  Tensor view = row_slice(tensor, tensor.dim(0) == 1 ? 0 : index, 1);
  return reshaped(view, tensor.dim(1), tensor.dim(2));
}

}  // namespace

void matmul(const Context& context, const MatmulArgs& args) {
  const auto [m, n, k] = check_product(context, "matmul", args, 2);
  const DType dtype = args.c.dtype;
  check_tensor("matmul", "c", args.c, "[M, N]", {m, n}, dtype);
  check_optional("matmul", "bias", args.bias, "[N]", {n});
  check_optional("matmul", "pre_activation", args.pre_activation, "[M, N]", {m, n}, dtype);
  check_optional("matmul", "gate_input", args.gate_input, "[M, N]", {m, n}, dtype);
  check_optional("matmul", "gate_output", args.gate_output, "[M, N]", {m, n}, dtype);
  CHECK(args.gate_input || !args.gate_output, ConfigError,
        "matmul: gate_output is made of gate_input, which is missing");
  CHECK(args.c_stride == 0 || (!args.pre_activation && !args.gate_input && !args.residual &&
                               args.activation == Activation::kNone && !(args.dropout.p > 0.0f)),
        ConfigError, "matmul: rows of c are dense but for a product with a bias");
  check_optional("matmul", "residual", args.residual, "[M, N]", {m, n}, dtype);
  check_optional("matmul", "norm's weight", args.norm.weight, "[K]", {k});
  check_optional("matmul", "norm's bias", args.norm.bias, "[K]", {k});
  CHECK(!args.norm || (!args.transpose_a && args.a_stride == 0), ConfigError,
        "matmul: rows that are normalised are dense and not transposed");
  if (m * n == 0) return;
  ScratchScope scope(*context.arena);
  MatmulArgs call = args;
  if (args.norm && !normalises(context, args)) {
    call.a = context.arena->scratch(args.a.dtype, m, k);
    normalise(context, args.norm, args.a, call.a);
    call.norm = {};
  }
  if (is_packed(args.b.dtype)) return packed_matmul(context, call);
  run(context, call);
}

void batched_matmul(const Context& context, const MatmulArgs& args) {
  const auto [m, n, k] = check_product(context, "batched_matmul", args, 3);
  const int64_t batch = args.c.dim(0);
  check_tensor("batched_matmul", "c", args.c, "[batch, M, N]", {batch, m, n}, args.c.dtype);
  for (const Tensor* tensor : {&args.a, &args.b})
    CHECK(tensor->dim(0) == batch || tensor->dim(0) == 1, ShapeError,
          "batched_matmul: a and b must have ", batch, " matrices as c does, or 1, got ",
          shape_string(args.a), " and ", shape_string(args.b));
  CHECK(!args.bias && !args.pre_activation && !args.gate_input && !args.residual, ConfigError,
        "batched_matmul: bias, gate and residual are for matmul");
  if (batch * m * n == 0) return;

  if (args.b.dim(0) == 1 && !args.transpose_a && args.a.dim(0) == batch) {  // one tall product
    MatmulArgs call = args;
    call.a = reshaped(args.a, batch * m, k);
    call.b = matrix(args.b, 0);
    call.c = reshaped(args.c, batch * m, n);
    return run(context, call);
  }
  if (context.kernels->matmul->batched != nullptr) {
    ScratchScope scope(*context.arena);
    MatmulArgs call = args;
    const int64_t bytes = context.kernels->matmul->scratch_bytes(args);
    call.scratch = context.arena->scratch(DType::kInt8, bytes);
    return context.kernels->matmul->batched(context, call);
  }
  MatmulArgs one = args;
  const auto select = [&](MatmulArgs& call, int64_t index) {
    call.a = matrix(args.a, index);
    call.b = matrix(args.b, index);
    call.c = matrix(args.c, index);
  };
  if (m * n * k >= kSmallProduct || batch == 1) {
    for (int64_t i = 0; i < batch; ++i) {
      select(one, i);
      run(context, one);
    }
    return;
  }
  select(one, 0);
  one.workers = 1;  // each
  ScratchScope scope(*context.arena);
  const int64_t bytes = context.kernels->matmul->scratch_bytes(one);
  const Tensor scratch = context.arena->scratch(DType::kInt8, num_threads(), bytes);
  parallel_for(batch, [&](int64_t index, int worker) {
    MatmulArgs call = one;
    select(call, index);
    call.scratch = row_slice(scratch, worker, 1);
    context.kernels->matmul->matmul(context, call);
  });
}

void column_sum(const Context& context, const ColumnSumArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  check_tensor("column_sum", "x", args.x, "[N, C]", {rows, width},
               activation_dtype("column_sum", "x", context, args.x));
  check_stride("column_sum", "x", context, args.x, args.x_stride);
  check_tensor("column_sum", "out", args.out, "[C]", {width});
  if (rows * width == 0) return;
  ScratchScope scope(*context.arena);
  ColumnSumArgs call = args;
  const int64_t partials = rows < kColumnSumPartials ? rows : kColumnSumPartials;
  call.partial = context.arena->scratch(DType::kFloat32, partials, width);
  context.kernels->matmul->column_sum(context, call);
}

}  // namespace llmcore
