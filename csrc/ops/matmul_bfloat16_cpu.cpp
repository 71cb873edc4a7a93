// Products of float matrices rounded to bfloat16, for training: all forms, sums in float.
//
// All of A is rounded once, into strips of rows; each task rounds the columns of B that it
// multiplies with, a group of panels at a time that stays in its second-level cache. K is cut into
// blocks, whose sums are added up in C.
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
  int64_t strip_bytes, panel_words, group;

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
    const int64_t fits = kGroupBytes / (panel_words * 4 + 1);
    group = round_up(max(min(fits, panels / (args.workers * kTasksPerThread)), 1), 2);
  }

  int64_t scratch_bytes(int workers, bool own_sums) const {
    return strips * strip_bytes + workers * group * panel_words * 4 +
           (own_sums ? rows * outputs * 4 : 0);
  }
};

// C is the residual too, and its sums take more than one block.
bool own_sums(const MatmulArgs& args, const Plan& plan) {
  return args.residual.data == args.c.data && plan.depth > kDepthBlock;
}

int64_t scratch_bytes(const MatmulArgs& args) {
  const Plan plan(args);
  return plan.scratch_bytes(args.workers, own_sums(args, plan));
}

void matmul(const MatmulArgs& args) {
  const Plan plan(args);
  char* const strip_data = args.scratch.as<char>();
  char* const panel_data = strip_data + plan.strips * plan.strip_bytes;
  char* const sums = panel_data + args.workers * plan.group * plan.panel_words * 4;
  const Output out =
      make_output(args, own_sums(args, plan) ? reinterpret_cast<float*>(sums) : args.c.f32());
  const bool alone =
      args.workers == 1 || plan.rows * plan.outputs * max(plan.depth, 1) < kAloneWork;
  const auto strip_at = [&](int64_t i) {
    return Strip{reinterpret_cast<DotWord*>(strip_data + i * plan.strip_bytes), nullptr, nullptr};
  };

  for (int64_t k = 0; k == 0 || k < plan.depth; k += kDepthBlock) {
    const int64_t depth = min(plan.depth - k, kDepthBlock);
    parallel_for_if(!alone, plan.strips, [&](int64_t i, int) {
      const int64_t row = i * Format::kRows, left = plan.rows - row;
      copy_bfloat16(plan.a, row, min(left, Format::kRows), k, depth, strip_at(i).words,
                    Tiles<Format>::tile_rows(left));
    });
    const Tiles<Format> tiles{.out = out,
                              .rows = plan.rows,
                              .outputs = plan.outputs,
                              .depth = depth,
                              .panel_words = ceil_div(depth, 2) * kPanelOutputs,
                              .add = k > 0 || args.accumulate,
                              .last = k + depth >= plan.depth};
    parallel_for_if(!alone, ceil_div(plan.panels, plan.group), [&](int64_t task, int worker) {
      const int64_t first = task * plan.group, count = min(plan.group, plan.panels - first);
      uint32_t* panel =
          reinterpret_cast<uint32_t*>(panel_data + worker * plan.group * plan.panel_words * 4);
      for (int64_t i = 0; i < count; ++i)
        copy_bfloat16(plan.b, (first + i) * kPanelOutputs,
                      min(kPanelOutputs, plan.outputs - (first + i) * kPanelOutputs), k, depth,
                      panel + i * tiles.panel_words, kPanelOutputs);
      for (int64_t i = 0; i < plan.strips; ++i)
        tiles.multiply(strip_at(i), i * Format::kRows, panel, count, first * kPanelOutputs);
    });
  }
}

}  // namespace

extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
const MatmulBFloat16Kernels matmul_bfloat16_kernels = {.scratch_bytes = scratch_bytes,
                                                       .matmul = matmul};

}  // namespace llmcore::LLMCORE_ISA
