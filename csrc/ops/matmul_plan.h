// How a matrix product is cut into tasks, and what a task copies before it multiplies.
//
// Of the two operands one gives scalars, its rows, and one vectors, its columns. A task is some
// rows times some columns. It copies its columns into panels of its own, so that no thread waits
// for another or reads what another has just written; they stay for the next task, if that has the
// same.
#pragma once

#include "ops/matmul_tile.h"

namespace llmcore::LLMCORE_ISA {

// The product as the kernel sees it. C may lie transposed.
struct Problem {
  Operand row_side, col_side;
  int64_t rows, cols, depth;
  bool transposed;

  // Panels hold all of k, or one block of it.
  bool whole_panels() const { return !row_side.along_k; }
  // They serve the next task of the same columns too.
  bool panels_stay() const { return whole_panels() || depth <= kMatmulBlock; }
};

// Columns [begin, begin + cols) cut into panels of nearly equal width, at most kTileVectors
// vectors: the first `wide` of them have a vector more than the others.
struct Panels {
  int64_t begin, cols, count, narrow, wide;

  Panels(int64_t begin, int64_t cols) : begin(begin), cols(cols) {
    const int64_t vectors = ceil_div(cols, kLanes);
    count = ceil_div(vectors, kTileVectors);
    narrow = vectors / count;
    wide = vectors % count;
  }

  int64_t vectors() const { return count * narrow + wide; }
  // First vector of a panel; the panel's floats start at that times kLanes times the depth.
  int64_t start(int64_t panel) const { return panel * narrow + min(panel, wide); }
  int64_t width(int64_t panel) const { return narrow + (panel < wide); }
  int64_t first_col(int64_t panel) const { return begin + start(panel) * kLanes; }
  int64_t valid_cols(int64_t panel) const {
    return min(width(panel) * kLanes, cols - start(panel) * kLanes);
  }
};

struct Plan {
  int64_t task_rows, task_cols, row_tasks, col_tasks;
  int64_t panel_floats, row_floats;  // of each worker's scratch
  int64_t cost;

  int64_t tasks() const { return row_tasks * col_tasks; }
  int64_t worker_floats() const { return kCacheLine + panel_floats + row_floats; }
};

// Floats of one block of k that are to stay in the second-level cache (1 MB) together: a group of
// panels; all of a task's, where its rows lie in place; a task's copied rows.
inline constexpr int64_t kGroupFloats = 90 << 10, kPanelFloats = 72 << 10, kRowFloats = 72 << 10;
// Where rows are copied too, every task of the same rows would copy them again: panels are wide
// then, hold all of k, and are left to the last-level cache.
inline constexpr int64_t kKeptFloats = 1 << 20;
// Multiply-adds that take as long as it takes to copy an element, to read one where it lies, to
// begin a task, and to read a row's element from another core's cache: whoever wrote rows should
// read them.
inline constexpr int64_t kCopyWork = 2 * kLanes, kReadWork = kLanes / 4, kBeginWork = 1 << 14;
inline constexpr int64_t kForeignWork = 2 * kLanes;
inline constexpr int64_t kMostTasksPerThread = 16;

// Distance between copied rows: a little more than they need, for a power of two would put all of
// them into a few sets of the cache.
static constexpr int64_t copy_stride(int64_t depth) {
  return round_up(min(depth, kMatmulBlock), kLanes) + kCacheLine;
}

// What the product takes if `threads` share the tasks and, in the end, wait for half of one.
static int64_t cost(const Problem& p, const Plan& plan, int64_t threads) {
  const int64_t makers =
      p.panels_stay() ? min(plan.row_tasks, 1 + (threads - 1) / plan.col_tasks) : plan.row_tasks;
  const int64_t step = p.rows * p.cols + makers * p.cols * kCopyWork +
                       plan.col_tasks * p.rows * (p.row_side.along_k ? kReadWork : kCopyWork) +
                       (min(plan.col_tasks, threads) - 1) * p.rows * kForeignWork;
  const int64_t total = step * max(p.depth, 1) + plan.tasks() * kBeginWork;
  return total / threads + (threads == 1 ? 0 : total / plan.tasks() / 2);
}

// The cheapest of all ways to halve rows and columns again and again.
static Plan make_plan(const Problem& p, int64_t threads) {
  const int64_t depth = max(min(p.depth, kMatmulBlock), 1);
  const int64_t panel_depth = p.whole_panels() ? max(p.depth, 1) : depth;
  const int64_t panel_floats = p.whole_panels() ? kKeptFloats : kPanelFloats;
  const int64_t most_cols = max(panel_floats / panel_depth / kTileCols, 1) * kTileCols;
  const int64_t most_rows =
      p.row_side.along_k ? p.rows : max(kRowFloats / copy_stride(depth) / kTileRows, 1) * kTileRows;
  Plan best{};
  for (int64_t c = ceil_div(p.cols, most_cols);; c *= 2) {
    for (int64_t r = ceil_div(p.rows, most_rows);; r *= 2) {
      Plan plan{};
      plan.task_rows = round_up(ceil_div(p.rows, r), kTileRows);
      plan.task_cols = round_up(ceil_div(p.cols, c), kTileCols);
      plan.row_tasks = ceil_div(p.rows, plan.task_rows);
      plan.col_tasks = ceil_div(p.cols, plan.task_cols);
      plan.cost = cost(p, plan, threads);
      if (best.task_rows == 0 || plan.cost < best.cost) best = plan;
      if (plan.task_rows == kTileRows || plan.tasks() >= threads * kMostTasksPerThread) break;
    }
    if (c * kTileCols >= p.cols || c >= threads * kMostTasksPerThread) break;
  }
  best.panel_floats = round_up(min(best.task_cols, p.cols), kCacheLine) * panel_depth;
  const int64_t copied = p.row_side.along_k ? kStripRows : round_up(best.task_rows, kLanes);
  best.row_floats = copied * copy_stride(depth);
  return best;
}

// Either operand may give the rows; what they are called decides how C lies.
struct PlannedProblem {
  Problem problem;
  Plan plan;
};

static PlannedProblem plan_product(const MatmulArgs& args) {
  const int64_t m = args.c.dim(0), n = args.c.dim(1);
  const Operand a{args.a.f32(), args.a.dim(1), !args.transpose_a};
  const Operand b{args.b.f32(), args.b.dim(1), args.transpose_b};
  const int64_t depth = a.along_k ? args.a.dim(1) : args.a.dim(0);
  const Problem straight{a, b, m, n, depth, false}, swapped{b, a, n, m, depth, true};
  const Plan first = make_plan(straight, args.workers);
  if (!b.along_k) return {straight, first};
  const Plan second = make_plan(swapped, args.workers);
  if (a.along_k && first.cost < second.cost) return {straight, first};
  return {swapped, second};
}

}  // namespace llmcore::LLMCORE_ISA
