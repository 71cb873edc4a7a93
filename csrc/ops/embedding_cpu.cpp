// Embedding on the CPU: a gather of rows, and its reverse in stripes of columns.
#include "core/parallel.h"
#include "core/random.h"
#include "ops/embedding.h"
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

// `values` with the mask of `dropout` from element `first` on applied.
LLMCORE_INLINE Vec drop(const Dropout& dropout, uint32_t threshold, int64_t first, Vec values) {
  const float keep = 1.0f / (1.0f - dropout.p);
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t element = static_cast<uint64_t>(first + i);
    const Philox4 words = philox(dropout.seed, dropout.stream, element / 4);
    values[i] = words.lane[element % 4] >= threshold ? values[i] * keep : 0.0f;
  }
  return values;
}

void forward(const Context&, const EmbeddingArgs& args) {
  const int64_t width = args.table.cols();
  const uint32_t threshold = dropout_threshold(args.dropout.p);
  parallel_chunks(args.ids.numel(), kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* token = args.table.f32() + args.ids.as<int32_t>()[n] * width;
      const float* position = nullptr;
      const float* type = nullptr;
      if (args.positions)
        position = args.positions.f32() + args.position_ids.as<int32_t>()[n] * width;
      if (args.types) type = args.types.f32() + args.type_ids.as<int32_t>()[n] * width;
      float* out = args.out.f32() + n * width;
      for (int64_t c = 0; c < width; c += kLanes) {
        const int64_t count = width - c;
        Vec sum = load_up_to(token + c, count) * args.scale;
        if (position != nullptr) sum += load_up_to(position + c, count);
        if (type != nullptr) sum += load_up_to(type + c, count);
        if (args.dropout.p > 0) sum = drop(args.dropout, threshold, n * width + c, sum);
        store_up_to(out + c, sum, count);
      }
    }
  });
}

// Adds the gradient rows [0, N), columns [begin, end), to one table's gradient.
struct Gradient {
  float* rows;
  const int32_t* ids;
};

void backward(const Context&, const EmbeddingBackwardArgs& args) {
  const int64_t rows = args.dout.rows(), width = args.dout.cols();
  const uint32_t threshold = dropout_threshold(args.dropout.p);
  const Gradient tables[] = {{args.dtable.f32(), args.ids.as<int32_t>()},
                             {args.dpositions.f32(), args.position_ids.as<int32_t>()},
                             {args.dtypes.f32(), args.type_ids.as<int32_t>()}};
  parallel_chunks(width, kColumnsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < rows; ++n) {
      const float* dout = args.dout.f32() + n * width;
      for (const Gradient& table : tables)
        if (table.rows != nullptr && n + kRowsAhead < rows)
          __builtin_prefetch(table.rows + table.ids[n + kRowsAhead] * width + begin, 1);
      for (int64_t c = begin; c < end; c += kLanes) {
        const int64_t count = end - c;
        Vec gradient = load_up_to(dout + c, count);
        if (args.dropout.p > 0) gradient = drop(args.dropout, threshold, n * width + c, gradient);
        float scale = args.scale;
        for (const Gradient& table : tables) {
          if (table.rows != nullptr) {
            float* row = table.rows + table.ids[n] * width + c;
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
const EmbeddingKernels embedding_kernels = {.forward = forward, .backward = backward};

}  // namespace llmcore::LLMCORE_ISA
