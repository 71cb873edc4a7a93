// Embedding on the CPU: a gather of rows, and its reverse in stripes of columns.
#include "core/parallel.h"
#include "ops/embedding.h"
#include "simd/philox.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
// The reverse of a gather meets rows of the table in any order, some of them often. Threads take
// stripes of columns: each element has one writer, and gets its sums in ascending n. No sort, no
// atomics, no pass over the table.
constexpr int64_t kColumnsPerTask = 64;
constexpr int64_t kRowsAhead = 8;  // how far ahead rows of the table are prefetched

LLMCORE_INLINE Vec load_up_to(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, count);
}
LLMCORE_INLINE void store_up_to(float* p, Vec v, int64_t count) {
  if (count >= kLanes)
    store(p, v);
  else
    store_partial(p, v, count);
}

void forward(const Context&, const EmbeddingArgs& args) {
  const int64_t width = args.table.cols();
  parallel_chunks(args.out.rows(), kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* token = args.table.f32() + (args.ids ? args.ids.as<int32_t>()[n] : n) * width;
      const float* position = nullptr;
      const float* type = nullptr;
      if (args.positions)
        position = args.positions.f32() +
                   (args.position_ids.as<int32_t>()[n] + args.first_position) * width;
      if (args.types)
        type = args.types.f32() + (args.type_ids ? args.type_ids.as<int32_t>()[n] : 0) * width;
      float* out = args.out.f32() + n * width;
      for (int64_t c = 0; c < width; c += kLanes) {
        const int64_t count = width - c;
        Vec sum = load_up_to(token + c, count) * args.scale;
        if (position != nullptr) sum += load_up_to(position + c, count);
        if (type != nullptr) sum += load_up_to(type + c, count);
        if (args.dropout.p > 0) sum *= dropout_factor(args.dropout, n * width + c);
        store_up_to(out + c, sum, count);
      }
    }
  });
}

// The gradient of one table, and the row of it that each n adds to.
struct Gradient {
  float* rows;
  const int32_t* ids;  // null: all 0
  int64_t first;
  int64_t row(int64_t n) const { return first + (ids == nullptr ? 0 : ids[n]); }
};

int64_t backward_scratch(const EmbeddingBackwardArgs&) {
  return 0;
}

void backward(const Context&, const EmbeddingBackwardArgs& args) {
  const int64_t rows = args.dout.rows(), width = args.dout.cols();
  const Gradient tables[] = {
      {args.dtable.f32(), args.ids.as<int32_t>(), 0},
      {args.dpositions.f32(), args.position_ids.as<int32_t>(), args.first_position},
      {args.dtypes.f32(), args.type_ids.as<int32_t>(), 0}};
  parallel_chunks(width, kColumnsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < rows; ++n) {
      const float* dout = args.dout.f32() + n * width;
      for (const Gradient& table : tables)
        if (table.rows != nullptr && n + kRowsAhead < rows)
          __builtin_prefetch(table.rows + table.row(n + kRowsAhead) * width + begin, 1);
      for (int64_t c = begin; c < end; c += kLanes) {
        const int64_t count = end - c;
        Vec gradient = load_up_to(dout + c, count);
        if (args.dropout.p > 0) gradient *= dropout_factor(args.dropout, n * width + c);
        float scale = args.scale;
        for (const Gradient& table : tables) {
          if (table.rows != nullptr) {
            float* row = table.rows + table.row(n) * width + c;
            store_up_to(row, load_up_to(row, count) + gradient * scale, count);
          }
          scale = 1.0f;
        }
      }
    }
  });
}

}  // namespace

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {
    .backward_scratch = backward_scratch, .forward = forward, .backward = backward};

}  // namespace llmcore::LLMCORE_ISA
