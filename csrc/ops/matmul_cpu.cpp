// Matrix products on the CPU: which operand is cut into panels, who computes which tiles.
//
// One kernel serves all forms (matmul_tile.h). The operand with the fewer elements, or the one that
// is contiguous along its columns anyway, is copied into panels; of a linear layer that is the
// activations in the forward pass, so the weights are read once, as they are stored.
#include <time.h>

#include "core/parallel.h"
#include "ops/matmul.h"
#include "ops/matmul_few_rows.h"
#include "ops/matmul_tile.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Floats of one block of k that are to stay in the second-level cache (1 MB) together: panels, of
// them those that a task made for itself alone, and the rows of a task.
constexpr int64_t kPanelFloats = 90 << 10, kOwnPanelFloats = 72 << 10, kRowFloats = 72 << 10;
// Rows of a task that makes its own panels: fewer would not be worth it.
constexpr int64_t kOwnTaskRows = 256;
// Panels shared by all tasks: at most this many bytes at a time, so that the last-level cache keeps
// them until the last task.
constexpr int64_t kSharedBytes = 4 << 20;
// Multiply-adds worth a task of their own: some 20 microseconds.
constexpr int64_t kTaskWork = 1 << 21;
constexpr int64_t kTasksPerThread = 8;
// Weights that one task streams: some 20 microseconds.
constexpr int64_t kStreamedFloats = 128 << 10;
// Up to so many rows, panels are not worth their copy.
constexpr int64_t kInPlaceRows = 16;
constexpr int64_t kLanes64 = kLanes;
constexpr int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Distance between copied rows: a little more than they need, for a power of two would put all of
// them into a few sets of the cache.
constexpr int64_t copy_stride(int64_t depth) {
  return round_up(min(depth, kMatmulBlock), kLanes) + kCacheLine;
}

// One side of the product. Its items (rows or columns of the problem) are contiguous along k, or
// lie beside each other.
struct Operand {
  const float* data;
  int64_t stride;
  bool along_k;

  const float* at(int64_t item, int64_t k) const {
    return along_k ? data + item * stride + k : data + k * stride + item;
  }
};

// The product as the kernel sees it: `rows` give scalars, `cols` give vectors. C may lie
// transposed.
struct Problem {
  Operand row_side, col_side;
  int64_t rows, cols, depth;
  bool transposed;
  bool shared_panels;  // made once, before the tasks; otherwise each task makes its own
};

Problem make_problem(const MatmulArgs& args) {
  const int64_t m = args.c.dim(0), n = args.c.dim(1);
  const Operand a{args.a.f32(), args.a.dim(1), !args.transpose_a};
  const Operand b{args.b.f32(), args.b.dim(1), args.transpose_b};
  const int64_t depth = a.along_k ? args.a.dim(1) : args.a.dim(0);
  const bool swap = b.along_k && (args.transpose_a || m <= n);
  const bool shared = swap || args.transpose_a || args.transpose_b;
  if (swap) return {b, a, n, m, depth, true, shared};
  return {a, b, m, n, depth, false, shared};
}

// Columns [begin, begin + count) cut into panels of nearly equal width, at most kTileVectors
// vectors.
struct Panels {
  int64_t begin, cols;

  int64_t vectors() const { return ceil_div(cols, kLanes64); }
  int64_t count() const { return ceil_div(vectors(), kTileVectors); }
  // First vector of a panel; the panel's floats start at that times kLanes times the depth.
  int64_t start(int64_t panel) const { return vectors() * panel / count(); }
  int64_t width(int64_t panel) const { return start(panel + 1) - start(panel); }
  int64_t first_col(int64_t panel) const { return begin + start(panel) * kLanes; }
  int64_t valid_cols(int64_t panel) const {
    return min(width(panel) * kLanes, cols - start(panel) * kLanes);
  }
};

// Sizes of the scratch's parts, in floats, and of the tasks.
struct Plan {
  int64_t pass_cols;             // columns whose panels exist at one time
  int64_t task_rows, task_cols;  // of one task
  int64_t shared, panels, rows;  // shared panels; of each worker: own panels, copied rows
  int64_t worker() const { return panels + rows; }
};

Plan make_plan(const Problem& p, int64_t threads) {
  Plan plan{};
  const int64_t tasks = threads == 1 ? 1 : threads * kTasksPerThread;
  const int64_t depth = max(min(p.depth, kMatmulBlock), 1);
  const int64_t most = kRowFloats / copy_stride(depth) / kTileRows * kTileRows;
  if (p.shared_panels) {
    const int64_t fit = max(kSharedBytes / 4 / max(p.depth, 1) / kTileCols, 1) * kTileCols;
    plan.pass_cols = plan.task_cols = min(p.cols, fit);
    plan.shared = round_up(plan.pass_cols, kLanes) * p.depth;
    const int64_t fair =
        max(ceil_div(p.rows, tasks), kTaskWork / max(plan.pass_cols * max(p.depth, 1), 1));
    plan.task_rows = min(round_up(fair, kTileRows), most);
  } else {
    plan.pass_cols = p.cols;
    plan.task_cols = round_up(ceil_div(p.cols, ceil_div(p.cols, kOwnPanelFloats / depth)), kLanes);
    plan.panels = plan.task_cols * depth;
    const int64_t col_tasks = ceil_div(p.cols, plan.task_cols);
    plan.task_rows =
        max(round_up(ceil_div(p.rows, ceil_div(tasks, col_tasks)), kTileRows), kOwnTaskRows);
  }
  const int64_t copied = p.row_side.along_k ? kStripRows : round_up(plan.task_rows, kLanes);
  plan.rows = copied * copy_stride(depth);
  return plan;
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < cols; the elements up to the
// next whole vector of i are zero.
void copy_transposed(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to,
                     int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    for (int64_t j = 0; j < cols; j += kLanes) {
      Vec block[kLanes];
      const float* corner = from + i * from_stride + j;
      if (rows - i >= kLanes && cols - j >= kLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) block[r] = load(corner + r * from_stride);
        transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) store(to + (j + r) * to_stride + i, block[r]);
      } else {
        for (int64_t r = 0; r < kLanes; ++r)
          block[r] = r < rows - i ? load_up_to(corner + r * from_stride, cols - j) : Vec{};
        transpose(block);
        for (int64_t r = 0; r < min(kLanes, cols - j); ++r)
          store(to + (j + r) * to_stride + i, block[r]);
      }
    }
  }
}

// Columns [col, col + valid) of the blocks of k from `k` on, as a panel of `vectors` vectors.
void make_panel(const Operand& side, int64_t col, int64_t valid, int64_t vectors, int64_t k,
                int64_t depth, float* panel) {
  const int64_t stride = vectors * kLanes;
  if (side.along_k)
    return copy_transposed(side.at(col, k), side.stride, valid, depth, panel, stride);
  constexpr int64_t kRowsAhead = 16;
  for (int64_t i = 0; i < depth; ++i) {
    const float* from = side.at(col, k + i);
    for (int64_t c = 0; c < valid; c += kCacheLine)
      __builtin_prefetch(from + kRowsAhead * side.stride + c, 0, 2);
    for (int64_t c = 0; c < valid; c += kLanes)
      store(panel + i * stride + c, load_up_to(from + c, valid - c));
  }
}

// The rows [begin, end) and columns of C that one task computes, block of k after block of k.
struct Block {
  const Problem& p;
  const Output& out;
  const Panels panels;
  const int64_t row_begin, row_end;
  const float* shared;         // panels of all k, or null
  float *own_panels, *copied;  // the worker's scratch
  int64_t stride;              // between copied rows

  struct Rows {
    const float* data;
    int64_t stride;
  };

  void run() const {
    int64_t k = 0;
    do {
      run_slab(k, min(kMatmulBlock, p.depth - k));
      k += kMatmulBlock;
    } while (k < p.depth);
  }

  void run_slab(int64_t k, int64_t depth) const {
    const bool in_place = !p.shared_panels && row_end - row_begin <= kInPlaceRows;
    if (!p.row_side.along_k)
      copy_transposed(p.row_side.at(row_begin, k), p.row_side.stride, depth, row_end - row_begin,
                      copied, stride);
    if (!p.shared_panels && !in_place)
      for (int64_t j = 0; j < panels.count(); ++j)
        make_panel(p.col_side, panels.first_col(j), panels.valid_cols(j), panels.width(j), k, depth,
                   own_panels + panels.start(j) * kLanes * depth);
    const int64_t groups = max(ceil_div(panels.cols * depth, kPanelFloats), 1);
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t row = row_begin; row < row_end; row += kTileRows)
        run_tiles(k, depth, row, group * panels.count() / groups,
                  (group + 1) * panels.count() / groups, in_place);
  }

  // The tiles of kTileRows rows in panels [first, end).
  void run_tiles(int64_t k, int64_t depth, int64_t row, int64_t first, int64_t end,
                 bool in_place) const {
    const int64_t valid_rows = min(kTileRows, row_end - row);
    const int64_t strips = ceil_div(valid_rows, kStripRows);
    Rows strip[kTileRows / kStripRows] = {};
    for (int64_t s = 0; s < strips; ++s) strip[s] = strip_at(row + s * kStripRows, k, depth);
    const bool cols_next = !p.shared_panels && !in_place;  // the first panel's turn to fetch them
    Ahead rows_ahead = rows_after(row, k);
    rows_ahead.count = ceil_div(rows_ahead.count, max(end - first - cols_next, 1) * strips);

    for (int64_t j = first; j < end; ++j) {
      alignas(64) float tile[kTileRows * kTileCols];
      const Rows panel = panel_at(j, k, depth, in_place);
      const int64_t col = panels.first_col(j), valid_cols = panels.valid_cols(j);
      const Place place{.m = p.transposed ? col : row,
                        .n = p.transposed ? row : col,
                        .rows = p.transposed ? valid_cols : valid_rows,
                        .cols = p.transposed ? valid_rows : valid_cols,
                        .add = k > 0 || out.args.accumulate,
                        .last = k + depth >= p.depth};
      prefetch(out, place);
      for (int64_t s = 0; s < strips; ++s) {
        const bool cols_turn = cols_next && j == first;
        multiply_width(panels.width(j), strip[s], panel, depth,
                       cols_turn ? cols_after(row + s * kStripRows, k, depth) : rows_ahead,
                       tile + s * kStripRows * kTileCols);
        if (!cols_turn) rows_ahead.data += rows_ahead.count * rows_ahead.stride;
      }
      if (p.transposed)
        store_transposed_tile(out, place, tile);
      else
        store_tile(out, place, tile);
    }
  }

  static void multiply_width(int64_t width, const Rows& rows, const Rows& panel, int64_t depth,
                             const Ahead& ahead, float* tile) {
    if (width == kTileVectors)
      multiply<kTileVectors>(rows.data, rows.stride, panel.data, panel.stride, depth, ahead, tile);
    else if (width == 2)
      multiply<2>(rows.data, rows.stride, panel.data, panel.stride, depth, ahead, tile);
    else
      multiply<1>(rows.data, rows.stride, panel.data, panel.stride, depth, ahead, tile);
  }

  // A strip in place where it can be; the last rows are copied if they are fewer.
  Rows strip_at(int64_t row, int64_t k, int64_t depth) const {
    if (!p.row_side.along_k) return {copied + (row - row_begin) * stride, stride};
    if (row_end - row >= kStripRows) return {p.row_side.at(row, k), p.row_side.stride};
    for (int64_t r = 0; r < kStripRows; ++r) {
      if (r < row_end - row)
        __builtin_memcpy(copied + r * stride, p.row_side.at(row + r, k), depth * sizeof(float));
      else
        __builtin_memset(copied + r * stride, 0, depth * sizeof(float));
    }
    return {copied, stride};
  }

  Rows panel_at(int64_t j, int64_t k, int64_t depth, bool in_place) const {
    const int64_t width = panels.width(j) * kLanes;
    if (p.shared_panels) return {shared + panels.start(j) * kLanes * p.depth + k * width, width};
    float* own = own_panels + panels.start(j) * kLanes * depth;
    if (!in_place) return {own, width};
    if (panels.valid_cols(j) == width)
      return {p.col_side.at(panels.first_col(j), k), p.col_side.stride};
    make_panel(p.col_side, panels.first_col(j), panels.valid_cols(j), panels.width(j), k, depth,
               own);
    return {own, width};
  }

  // What is read after the rows from `row` on: the next rows, or the next block of k of the first.
  Ahead rows_after(int64_t row, int64_t k) const {
    if (!p.row_side.along_k) return {};
    row += kTileRows;
    if (row >= row_end && k + kMatmulBlock < p.depth) {
      row = row_begin;
      k += kMatmulBlock;
    } else if (row >= row_end) {
      k = 0;
    }
    const int64_t rows = min(kTileRows, p.rows - row);
    if (rows <= 0) return {};
    return {.data = p.row_side.at(row, k),
            .stride = p.row_side.stride,
            .step = kCacheLine,
            .count = rows};
  }

  // What own panels are made of next: the next block of k, or the next task's columns. Each strip
  // of rows brings as many steps of k near as a product over `depth` has cache lines.
  Ahead cols_after(int64_t row, int64_t k, int64_t depth) const {
    int64_t col = panels.begin;
    k += kMatmulBlock;
    if (k >= p.depth) {
      k = 0;
      col += panels.cols;
    }
    k += (row - row_begin) / kStripRows * ceil_div(depth, kCacheLine);
    const int64_t cols = min(panels.cols, p.cols - col);
    if (cols <= 0 || k + depth / kCacheLine > p.depth) return {};
    return {.data = p.col_side.at(col, k),
            .stride = kCacheLine,
            .step = p.col_side.stride,
            .count = ceil_div(cols, kCacheLine)};
  }
};

int64_t scratch_bytes(const MatmulArgs& args) {
  const Problem p = make_problem(args);
  const Plan plan = make_plan(p, args.workers);
  const int64_t sums = needs_own_sums(args, p.depth) ? args.c.numel() : 0;
  return (plan.shared + args.workers * plan.worker() + sums) * static_cast<int64_t>(sizeof(float));
}

// As parallel_for, on the calling thread alone where the work is not worth waking others.
template <class Body>
LLMCORE_INLINE void for_each_task(bool alone, int64_t count, Body body) {
  if (alone)
    for (int64_t i = 0; i < count; ++i) body(i, 0);
  else
    parallel_for(count, body);
}

void matmul(const Context&, const MatmulArgs& args) {
  const Problem p = make_problem(args);
  const Plan plan = make_plan(p, args.workers);
  float* shared = args.scratch.f32();
  float* own_sums = shared + plan.shared + args.workers * plan.worker();
  const Output out = make_output(args, needs_own_sums(args, p.depth) ? own_sums : args.c.f32());
  if (p.transposed && p.row_side.along_k && p.col_side.along_k && p.cols <= kFewRows) {
    const FewRows few{p.col_side.data, p.row_side.data, p.cols, p.rows, p.depth, out};
    const int64_t grain = max(round_up(kStreamedFloats / max(p.depth, 1), kLanes), kLanes);
    for_each_task(
        args.workers == 1 || p.rows <= grain, ceil_div(p.rows, grain),
        [&](int64_t task, int) { few_rows(few, task * grain, min((task + 1) * grain, p.rows)); });
    return;
  }
  const bool alone = args.workers == 1 || p.rows * p.cols * max(p.depth, 1) < kTaskWork;
  for (int64_t pass = 0; pass < p.cols; pass += plan.pass_cols) {
    const int64_t pass_cols = min(plan.pass_cols, p.cols - pass);
    if (p.shared_panels) {
      const Panels panels{pass, pass_cols};
      for_each_task(alone, panels.count(), [&](int64_t j, int) {
        make_panel(p.col_side, panels.first_col(j), panels.valid_cols(j), panels.width(j), 0,
                   p.depth, shared + panels.start(j) * kLanes * p.depth);
      });
    }
    const int64_t row_tasks = ceil_div(p.rows, plan.task_rows);
    const int64_t col_tasks = ceil_div(pass_cols, plan.task_cols);
    for_each_task(alone, row_tasks * col_tasks, [&](int64_t task, int worker) {
      const int64_t row = task % row_tasks * plan.task_rows;
      const int64_t col = task / row_tasks * plan.task_cols;
      float* own = shared + plan.shared + worker * plan.worker();
      const Block block{.p = p,
                        .out = out,
                        .panels = {pass + col, min(plan.task_cols, pass_cols - col)},
                        .row_begin = row,
                        .row_end = min(row + plan.task_rows, p.rows),
                        .shared = shared,
                        .own_panels = own,
                        .copied = own + plan.panels,
                        .stride = copy_stride(p.depth)};
      block.run();
    });
  }
}

void column_sum(const Context&, const ColumnSumArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  const int64_t partials = args.partial.dim(0);
  parallel_for(partials, [&](int64_t block, int) {
    float* sum = args.partial.f32() + block * width;
    __builtin_memset(sum, 0, width * sizeof(float));
    const int64_t end = (block + 1) * rows / partials;
    for (int64_t n = block * rows / partials; n < end; ++n) {
      const float* x = args.x.f32() + n * width;
      for (int64_t c = 0; c < width; ++c) sum[c] += x[c];
    }
  });
  float* out = args.out.f32();
  for (int64_t block = 0; block < partials; ++block)
    for (int64_t c = 0; c < width; ++c) out[c] += args.partial.f32()[block * width + c];
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double peak_of_one_thread(double seconds) {
  constexpr int kChains = kStripRows * kTileVectors;
  constexpr int64_t kRounds = 10000;
  volatile float half = 0.5f, sink;
  const Vec factor = broadcast(half);
  Vec sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = broadcast(half + static_cast<float>(i));
  double best = 0.0;
  const double end = now() + seconds;
  do {
    const double start = now();
    for (int64_t round = 0; round < kRounds; ++round)
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], factor, factor);
    const double rate = 2.0 * kLanes * kChains * kRounds / (now() - start);
    best = rate > best ? rate : best;
  } while (now() < end);
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  sink = reduce_add(sum[0]);
  (void)sink;
  return best;
}

double measure_peak(double seconds) {
  constexpr int kMaxThreads = 4096;
  double rates[kMaxThreads];
  const int threads = num_threads();
  parallel_for(threads, [&](int64_t i, int) { rates[i] = peak_of_one_thread(seconds); });
  double total = 0.0;
  for (int i = 0; i < threads; ++i) total += rates[i];
  return total;
}

}  // namespace

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {.scratch_bytes = scratch_bytes,
                                      .matmul = matmul,
                                      .column_sum = column_sum,
                                      .measure_peak = measure_peak};

}  // namespace llmcore::LLMCORE_ISA
