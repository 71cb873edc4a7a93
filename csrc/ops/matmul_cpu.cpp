// Matrix products on the CPU: one kernel serves all forms (matmul_tile.h), cut into tasks by
// matmul_plan.h; a few rows, as when text is generated, have one of their own (matmul_few_rows.h).
#include "core/parallel.h"
#include "ops/matmul.h"
#include "ops/matmul_few_rows.h"
#include "ops/matmul_plan.h"
#include "ops/matmul_tile.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Fewer multiply-adds than this are not worth waking other threads: some 20 microseconds.
constexpr int64_t kAloneWork = 1 << 21;
// Weights that one task streams: some 20 microseconds.
constexpr int64_t kStreamedFloats = 128 << 10;
// Up to so many rows, panels are not worth their copy.
constexpr int64_t kInPlaceRows = 16;

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < cols. Whole vectors of
// i are written, j after j; what lies beyond `rows` is zero, or else the beginning of the next j.
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

// to[i * to_stride + c] = from[i * from_stride + c] for i < steps, c < cols, up to a whole vector
// of c.
void copy_steps(const float* from, int64_t from_stride, int64_t steps, int64_t cols, float* to,
                int64_t to_stride) {
  for (int64_t i = 0; i < steps; ++i, from += from_stride, to += to_stride) {
    for (int64_t c = 0; c < cols; c += kCacheLine)
      __builtin_prefetch(from + steps * from_stride + c, 0, 2);
    for (int64_t c = 0; c < cols; c += kLanes) store(to + c, load_up_to(from + c, cols - c));
  }
}

// Panels [first, end) of the steps of k [k, k + depth). Where columns lie beside each other, a few
// steps of all panels are copied at a time, so that memory is read along its rows.
void copy_panels(const Operand& side, const Panels& panels, int64_t first, int64_t end, int64_t k,
                 int64_t depth, float* to) {
  constexpr int64_t kSteps = 16;
  const int64_t steps = side.along_k ? max(depth, 1) : kSteps;
  for (int64_t i = 0; i < depth; i += steps) {
    const int64_t count = min(steps, depth - i);
    for (int64_t j = first; j < end; ++j) {
      const int64_t width = panels.width(j) * kLanes, valid = panels.valid_cols(j);
      const float* from = side.at(panels.first_col(j), k + i);
      float* panel = to + panels.start(j) * kLanes * depth + i * width;
      if (side.along_k)
        copy_transposed(from, side.stride, valid, count, panel, width);
      else
        copy_steps(from, side.stride, count, valid, panel, width);
    }
  }
}

// The rows and columns of C that one task computes, block of k after block of k.
struct Block {
  struct Rows {
    const float* data;
    int64_t stride;
  };

  const Problem& p;
  const Output& out;
  const Panels panels;
  const int64_t row_begin, row_end;
  // The worker's scratch: the first of the columns whose panels it holds, panels, copied rows.
  int64_t* held;
  float *panel_data, *copied;

  void run() const {
    if (p.whole_panels() && *held != panels.begin) {
      for (int64_t k = 0; k < p.depth; k += kMatmulBlock)
        make_panels(k, min(kMatmulBlock, p.depth - k));
      *held = panels.begin;
    }
    int64_t k = 0;
    do {
      run_slab(k, min(kMatmulBlock, p.depth - k));
      k += kMatmulBlock;
    } while (k < p.depth);
  }

  void run_slab(int64_t k, int64_t depth) const {
    const bool in_place = p.row_side.along_k && !p.col_side.along_k && p.rows <= kInPlaceRows;
    if (!p.row_side.along_k) {
      copy_transposed(p.row_side.at(row_begin, k), p.row_side.stride, depth, row_end - row_begin,
                      copied, copy_stride(depth));
    } else if (!in_place && !(p.panels_stay() && *held == panels.begin)) {
      make_panels(k, depth);
      *held = panels.begin;
    }
    const int64_t groups = max(ceil_div(panels.cols * depth, kGroupFloats), 1);
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t row = row_begin; row < row_end; row += kTileRows)
        run_tiles(k, depth, row, group * panels.count / groups, (group + 1) * panels.count / groups,
                  in_place);
  }

  // The tiles of kTileRows rows in panels [first, end).
  void run_tiles(int64_t k, int64_t depth, int64_t row, int64_t first, int64_t end,
                 bool in_place) const {
    const int64_t valid_rows = min(kTileRows, row_end - row);
    const int64_t strips = ceil_div(valid_rows, kStripRows);
    Rows strip[kTileStrips] = {};
    for (int64_t s = 0; s < strips; ++s)
      strip[s] = strip_at(row, s, valid_rows - s * kStripRows, k, depth);
    // The first panel's turn is to bring the next panels near, the others' to bring the next rows.
    const bool cols_next = !p.col_side.along_k && p.depth > kMatmulBlock && !in_place;
    Ahead rows_ahead = rows_after(row, k, max(end - first - cols_next, 1) * strips);

    for (int64_t j = first; j < end; ++j) {
      alignas(64) float tile[kTileRows * kTileCols];
      const int64_t col = panels.first_col(j), valid_cols = panels.valid_cols(j);
      const Place place{.m = p.transposed ? col : row,
                        .n = p.transposed ? row : col,
                        .rows = p.transposed ? valid_cols : valid_rows,
                        .cols = p.transposed ? valid_rows : valid_cols,
                        .add = k > 0 || out.accumulate,
                        .last = k + depth >= p.depth};
      const Rows panel = panel_at(j, k, depth, in_place);
      prefetch(out, place);
      for (int64_t s = 0; s < strips; ++s) {
        const bool cols_turn = cols_next && j == first;
        multiply_width(panels.width(j), strip[s], panel, depth,
                       cols_turn ? cols_after(row + s * kStripRows, k, depth) : rows_ahead,
                       tile + s * kStripRows * kTileCols);
        if (!cols_turn) rows_ahead.data += rows_ahead.count * rows_ahead.stride;
      }
      if (p.transposed)
        store_tile<true>(out, place, tile);
      else
        store_tile<false>(out, place, tile);
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
  Rows strip_at(int64_t row, int64_t s, int64_t valid, int64_t k, int64_t depth) const {
    row += s * kStripRows;
    const int64_t stride = copy_stride(depth);
    if (!p.row_side.along_k) return {copied + (row - row_begin) * stride, stride};
    if (valid >= kStripRows) return {p.row_side.at(row, k), p.row_side.stride};
    for (int64_t r = 0; r < kStripRows; ++r) {
      if (r < valid)
        __builtin_memcpy(copied + r * stride, p.row_side.at(row + r, k), depth * sizeof(float));
      else
        __builtin_memset(copied + r * stride, 0, depth * sizeof(float));
    }
    return {copied, stride};
  }

  float* panels_of(int64_t k) const {
    return panel_data + (p.whole_panels() ? k * panels.vectors() * kLanes : 0);
  }

  void make_panels(int64_t k, int64_t depth) const {
    copy_panels(p.col_side, panels, 0, panels.count, k, depth, panels_of(k));
  }

  Rows panel_at(int64_t j, int64_t k, int64_t depth, bool in_place) const {
    const int64_t width = panels.width(j) * kLanes;
    if (in_place && panels.valid_cols(j) == width)
      return {p.col_side.at(panels.first_col(j), k), p.col_side.stride};
    if (in_place) copy_panels(p.col_side, panels, j, j + 1, k, depth, panels_of(k));
    return {panels_of(k) + panels.start(j) * kLanes * depth, width};
  }

  // What is read after the rows from `row` on, in so many parts: the next rows, or the next block
  // of k of the first.
  Ahead rows_after(int64_t row, int64_t k, int64_t parts) const {
    if (!p.row_side.along_k) return {};
    row += kTileRows;
    if (row >= row_end) {
      row = row_begin;
      k += kMatmulBlock;
    }
    if (k >= p.depth) return {};
    return {.data = p.row_side.at(row, k),
            .stride = p.row_side.stride,
            .step = kCacheLine,
            .count = ceil_div(min(kTileRows, p.rows - row), parts)};
  }

  // What panels are made of next: the next block of k, or the next task's columns. Each strip of
  // rows brings as many steps of k near as a product over `depth` has cache lines.
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

bool has_few_rows(const MatmulArgs& args) {
  return !args.transpose_a && args.transpose_b && args.c.dim(0) <= kFewRows;
}

// Of the copy of x, which one row does without.
int64_t few_rows_floats(const MatmulArgs& args) {
  const int64_t rows = args.c.dim(0), depth = args.a.dim(1);
  return rows == 1 ? 0 : round_up(depth * few_rows_stride(rows) + kLanes, kCacheLine);
}

int64_t scratch_bytes(const MatmulArgs& args) {
  if (has_few_rows(args)) return few_rows_floats(args) * static_cast<int64_t>(sizeof(float));
  const auto [p, plan] = plan_product(args);
  const int64_t sums = needs_own_sums(args, p.depth) ? args.c.numel() : 0;
  return (args.workers * plan.worker_floats() + sums) * static_cast<int64_t>(sizeof(float));
}

void matmul_few_rows(const MatmulArgs& args) {
  const Output out = make_output(args, args.c.f32());
  const int64_t rows = args.c.dim(0), depth = args.a.dim(1);
  const float* x = args.a.f32();
  if (rows > 1) {  // beside each other: one stream, whatever the distance between rows
    copy_transposed(x, depth, rows, depth, args.scratch.f32(), few_rows_stride(rows));
    x = args.scratch.f32();
  }
  const FewRows few{x, args.b.f32(), rows, args.c.dim(1), depth, out};
  const int64_t grain = max(round_up(kStreamedFloats / max(few.k, 1), kLanes), kLanes);
  parallel_for_if(
      args.workers > 1 && few.n > grain, ceil_div(few.n, grain),
      [&](int64_t task, int) { few_rows(few, task * grain, min((task + 1) * grain, few.n)); });
}

void matmul(const Context&, const MatmulArgs& args) {
  if (has_few_rows(args)) return matmul_few_rows(args);
  const auto planned = plan_product(args);
  const Problem& p = planned.problem;
  const Plan& plan = planned.plan;
  float* scratch = args.scratch.f32();
  float* own_sums = scratch + args.workers * plan.worker_floats();
  const Output out = make_output(args, needs_own_sums(args, p.depth) ? own_sums : args.c.f32());
  for (int worker = 0; worker < args.workers; ++worker)
    *reinterpret_cast<int64_t*>(scratch + worker * plan.worker_floats()) = -1;
  const bool shared = args.workers > 1 && p.rows * p.cols * max(p.depth, 1) >= kAloneWork;
  parallel_for_if(shared, plan.tasks(), [&](int64_t task, int worker) {
    const int64_t row = task % plan.row_tasks * plan.task_rows;
    const int64_t col = task / plan.row_tasks * plan.task_cols;
    float* own = scratch + worker * plan.worker_floats();
    const Block block{.p = p,
                      .out = out,
                      .panels = Panels(col, min(plan.task_cols, p.cols - col)),
                      .row_begin = row,
                      .row_end = min(row + plan.task_rows, p.rows),
                      .held = reinterpret_cast<int64_t*>(own),
                      .panel_data = own + kCacheLine,
                      .copied = own + kCacheLine + plan.panel_floats};
    block.run();
  });
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

}  // namespace

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {
    .scratch_bytes = scratch_bytes, .matmul = matmul, .column_sum = column_sum};

}  // namespace llmcore::LLMCORE_ISA
