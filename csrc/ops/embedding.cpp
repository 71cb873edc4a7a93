// Checks of the embedding's arguments, ids included: a kernel never sees one outside its table.
#include "ops/embedding.h"

#include "ops/checks.h"
#include "ops/kernels.h"
#include "ops/packed.h"

namespace llmcore {
namespace {

// The place of flat element `index` in the shape of `tensor`: "[2, 5]".
std::string place_string(const Tensor& tensor, int64_t index) {
  Tensor place = tensor;
  for (int axis = tensor.rank - 1; axis >= 0; --axis) {
    place.shape[axis] = index % tensor.shape[axis];
    index /= tensor.shape[axis];
  }
  return shape_string(place);
}

// One id per row of [N, C], in any shape, and a table for them to index.
void check_lookup(const Context& context, const char* op, const char* ids_name, const Tensor& ids,
                  const char* table_name, const Tensor& table, int64_t rows, int64_t width,
                  int64_t first_row = 0) {
  check_tensor(op, ids_name, reshaped(ids, ids.numel()), "[N]", {rows}, DType::kInt32);
  check_tensor(op, table_name, table, "[rows, C]", {table.rank == 2 ? table.dim(0) : 0, width},
               is_packed(table.dtype) ? table.dtype : DType::kFloat32);
  check_ids(context, op, ids_name, ids, table.dim(0), first_row);
}

}  // namespace

void check_ids(const Context& context, const char* op, const char* name, const Tensor& ids,
               int64_t rows, int64_t first_row) {
  const HostInts id(context, ids);
  const int64_t count = ids.numel();
  for (int64_t i = 0; i < count; ++i)
    CHECK(id[i] + first_row >= 0 && id[i] + first_row < rows, IndexError, op, ": ", name,
          place_string(ids, i), " = ", id[i] + first_row, " is outside the table of ", rows,
          " rows");
}

void embedding_forward(const Context& context, const EmbeddingArgs& args) {
  const char* op = "embedding";
  const int64_t rows = args.ids.numel(), width = args.table.cols();
  check_tensor(op, "out", args.out, "[N, C]", {rows, width},
               activation_dtype(op, "out", context, args.out));
  check_lookup(context, op, "ids", args.ids, "table", args.table, rows, width);
  if (args.positions)
    check_lookup(context, op, "position_ids", args.position_ids, "positions", args.positions, rows,
                 width, args.first_position);
  if (args.types && args.type_ids)
    check_lookup(context, op, "type_ids", args.type_ids, "types", args.types, rows, width);
  if (rows * width == 0) return;
  if (!is_packed(args.table.dtype)) return context.kernels->embedding->forward(context, args);
  ScratchScope scope(*context.arena);
  EmbeddingArgs call = args;
  call.table = context.arena->scratch(DType::kFloat32, rows, width);
  unpack_rows(context, {.packed = args.table, .rows = args.ids, .out = call.table});
  call.ids = {};
  context.kernels->embedding->forward(context, call);
}

void embedding_backward(const Context& context, const EmbeddingBackwardArgs& args) {
  const char* op = "embedding_backward";
  const int64_t rows = args.dout.rows(), width = args.dout.cols();
  check_tensor(op, "dout", args.dout, "[N, C]", {rows, width},
               activation_dtype(op, "dout", context, args.dout));
  if (args.dtable) check_lookup(context, op, "ids", args.ids, "dtable", args.dtable, rows, width);
  if (args.dpositions)
    check_lookup(context, op, "position_ids", args.position_ids, "dpositions", args.dpositions,
                 rows, width, args.first_position);
  if (args.dtypes && args.type_ids)
    check_lookup(context, op, "type_ids", args.type_ids, "dtypes", args.dtypes, rows, width);
  if (rows * width == 0) return;
  ScratchScope scope(*context.arena);
  EmbeddingBackwardArgs call = args;
  const EmbeddingKernels& kernels = *context.kernels->embedding;
  call.scratch = context.arena->scratch(DType::kInt8, kernels.backward_scratch(args));
  kernels.backward(context, call);
}

}  // namespace llmcore
