// Products of float matrices rounded to bfloat16, for training: all forms, sums in float.
//
// Where all columns of B fit a second-level cache, rounded, each thread rounds them for itself and
// takes rows of A through them: those that it has written itself, mostly, in the product before.
// Otherwise all of A is rounded once, into strips of rows, and each task rounds the columns of B
// that it multiplies with, a group of panels at a time. K is cut into blocks, whose sums are added
// up in C.
#include "core/parallel.h"
#include "ops/bfloat16_words.h"
#include "ops/matmul.h"

namespace llmcore::LLMCORE_ISA {
namespace {

using Format = BFloat16Format;

constexpr int64_t kDepthBlock = 3072;
// Fewer multiply-adds than this are not worth waking other threads: some 20 microseconds.
constexpr int64_t kAloneWork = 1 << 22;

struct Plan {
  Operand a, b;
  int64_t rows, outputs, depth, strips, panels;
  int64_t strip_bytes, panel_words;
  bool by_rows;
  int64_t task_strips;  // by rows
  int64_t group;        // panels that a worker holds
  // Of a worker's scratch: its panels; by rows also which block of K they are of, and a strip.
  int64_t worker_bytes;

  explicit Plan(const MatmulArgs& args)
      : a{args.a.f32(), args.a.dim(1), !args.transpose_a},
        b{args.b.f32(), args.b.dim(1), args.transpose_b},
        rows(args.c.dim(0)),
        outputs(args.c.dim(1)),
        depth(args.a.dim(args.transpose_a ? 0 : 1)),
        strips(ceil_div(rows, Format::kRows)),
        panels(packed_panels(outputs)) {
    const int64_t words = ceil_div(min(depth, kDepthBlock), 2);
    // copy_bfloat16 writes whole vectors.
    strip_bytes =
        round_up((words * Format::kRows + kLanes) * static_cast<int64_t>(sizeof(DotWord)), 64);
    panel_words = words * kPanelOutputs;
    const int64_t tasks = args.workers * kTasksPerThread,
                  fits = kGroupBytes / (panel_words * 4 + 1);
    by_rows = panels <= fits && strips >= tasks;
    task_strips = ceil_div(strips, 2 * tasks);  // beginning one costs nothing
    group = by_rows ? panels : round_up(max(min(fits, panels / tasks), 1), 2);
    worker_bytes = group * panel_words * 4 + (by_rows ? strip_bytes + 64 : 0);
  }

  int64_t shared_bytes() const { return by_rows ? 0 : strips * strip_bytes; }
};

// C is the residual too, and its sums take more than one block.
bool own_sums(const MatmulArgs& args, const Plan& plan) {
  return args.residual.data == args.c.data && plan.depth > kDepthBlock;
}

int64_t scratch_bytes(const MatmulArgs& args) {
  const Plan plan(args);
  return plan.shared_bytes() + args.workers * plan.worker_bytes +
         (own_sums(args, plan) ? plan.rows * plan.outputs * 4 : 0);
}

// One block of K.
struct Block {
  const Plan& plan;
  const Tiles<Format>& tiles;
  int64_t k;
  char *shared, *own;  // scratch: of all, of every worker
  int workers;
  bool alone;

  void fill_strip(int64_t i, const Strip& strip) const {
    const int64_t row = i * Format::kRows, left = plan.rows - row;
    copy_bfloat16(plan.a, row, min(left, Format::kRows), left, k, tiles.depth, strip.words,
                  Tiles<Format>::tile_rows(left));
  }

  void fill_panels(int64_t first, int64_t count, uint32_t* panel) const {
    for (int64_t i = first; i < first + count; ++i, panel += tiles.panel_words) {
      const int64_t left = plan.outputs - i * kPanelOutputs;
      copy_bfloat16(plan.b, i * kPanelOutputs, min(kPanelOutputs, left), left, k, tiles.depth,
                    panel, kPanelOutputs);
    }
  }

  // What the panels from `first` on are made of. P panels are P K lines; meanwhile each strip takes
  // P / 2 times K / 2 words.
  Upcoming before_panels(int64_t first) const {
    const int64_t item = first * kPanelOutputs;
    const int64_t items = min(plan.group * kPanelOutputs, plan.outputs - item);
    if (items <= 0) return {};
    const int64_t rows = plan.b.along_k ? items : tiles.depth;
    return {.row = plan.b.at(item, k),
            .stride = plan.b.stride,
            .rows = rows,
            .lines = ceil_div(plan.b.along_k ? tiles.depth : items, kCacheLine),
            .every = max(plan.strips / 4, 1)};
  }

  void run_by_rows() const {
    for (int worker = 0; worker < workers; ++worker)
      *reinterpret_cast<int64_t*>(own + worker * plan.worker_bytes) = -1;
    parallel_for_if(!alone, ceil_div(plan.strips, plan.task_strips), [&](int64_t task, int worker) {
      char* const scratch = own + worker * plan.worker_bytes;
      int64_t* const held = reinterpret_cast<int64_t*>(scratch);
      const Strip strip{reinterpret_cast<DotWord*>(scratch + 64), nullptr, nullptr};
      uint32_t* const panel = reinterpret_cast<uint32_t*>(scratch + 64 + plan.strip_bytes);
      if (*held != k) fill_panels(0, plan.panels, panel);
      *held = k;
      const int64_t end = min((task + 1) * plan.task_strips, plan.strips);
      for (int64_t i = task * plan.task_strips; i < end; ++i) {
        fill_strip(i, strip);
        tiles.multiply(strip, i * Format::kRows, panel, plan.panels, 0);
      }
    });
  }

  void run_by_columns() const {
    const auto strip_at = [&](int64_t i) {
      return Strip{reinterpret_cast<DotWord*>(shared + i * plan.strip_bytes), nullptr, nullptr};
    };
    parallel_for_if(!alone, plan.strips, [&](int64_t i, int) { fill_strip(i, strip_at(i)); });
    parallel_for_if(!alone, ceil_div(plan.panels, plan.group), [&](int64_t task, int worker) {
      const int64_t first = task * plan.group, count = min(plan.group, plan.panels - first);
      uint32_t* panel = reinterpret_cast<uint32_t*>(own + worker * plan.worker_bytes);
      fill_panels(first, count, panel);
      Upcoming upcoming = before_panels(first + count);
      for (int64_t i = 0; i < plan.strips; ++i)
        tiles.multiply(strip_at(i), i * Format::kRows, panel, count, first * kPanelOutputs,
                       upcoming);
    });
  }
};

void matmul(const Context&, const MatmulArgs& args) {
  const Plan plan(args);
  char* const shared = args.scratch.as<char>();
  char* const own = shared + plan.shared_bytes();
  char* const sums = own + args.workers * plan.worker_bytes;
  const Output out =
      make_output(args, own_sums(args, plan) ? reinterpret_cast<float*>(sums) : args.c.f32());
  const bool alone =
      args.workers == 1 || plan.rows * plan.outputs * max(plan.depth, 1) < kAloneWork;
  for (int64_t k = 0; k == 0 || k < plan.depth; k += kDepthBlock) {
    const int64_t depth = min(plan.depth - k, kDepthBlock);
    const Tiles<Format> tiles{.out = out,
                              .rows = plan.rows,
                              .outputs = plan.outputs,
                              .depth = depth,
                              .panel_words = ceil_div(depth, 2) * kPanelOutputs,
                              .add = k > 0 || args.accumulate,
                              .last = k + depth >= plan.depth};
    const Block block{plan, tiles, k, shared, own, args.workers, alone};
    if (plan.by_rows)
      block.run_by_rows();
    else
      block.run_by_columns();
  }
}

}  // namespace

extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
const MatmulBFloat16Kernels matmul_bfloat16_kernels = {.scratch_bytes = scratch_bytes,
                                                       .matmul = matmul};

}  // namespace llmcore::LLMCORE_ISA
