// Attention's backward pass on tensor cores: what attention_backward_cuda.cu does, with operands of
// bfloat16. A warp has sixteen keys, or sixteen rows; the weights and the gradients of scores are
// sums in its registers and from there the left sides of the products that follow.
#include "ops/attention_mma_cuda.h"

namespace llmcore::cuda {
namespace {

// What a row sees, and its place in [B, H, T].
struct RowView {
  int begin, end;
  int64_t index;
};
__device__ __forceinline__ RowView row_view(const AttentionArgs& args, const KvGroup& group,
                                            int64_t row) {
  if (row >= args.queries * group.group) return {0, 0, 0};
  const KeyRange seen = visible_keys(args, group.b, group.query(row));
  return {static_cast<int>(seen.begin), static_cast<int>(seen.end), row_index(args, group, row)};
}

// From the products q . k and dout . v of a row and a key to its weight and, returned, the gradient
// of its score before the softcap. `factor` is dropout's.
template <bool kExtras, class Bias>
__device__ __forceinline__ float take_weight(const AttentionBackwardArgs& args,
                                             const KvGroup& group, int64_t row,
                                             const RowFacts& facts, const RowView& view, int key,
                                             float unit, float factor, float& weight, float dweight,
                                             Bias bias) {
  float x = weight, slope = 1.0f;
  if (kExtras)
    x = finish_score(args, group, row, {view.begin, view.end}, key, x * args.scale, slope);
  const float p = fast_exp2(fmaf(x, unit, -facts.highest) - facts.log_sum);
  weight = p * factor;
  const float dscore = p * (dweight * factor - facts.delta);
  bias(key, dscore);
  return dscore * slope;
}

constexpr int kMmaKeys = 16 * kMmaWarps;
static_assert(kMmaKeys == kTile);

// Rows that meet the keys of a block together: what registers have room for.
template <int kWidth>
inline constexpr int kMmaRows = kWidth <= 64 ? 64 : 16;

// Grid: kv heads of all sequences, `blocks` of keys each.
template <int kWidth, bool kExtras>
__global__ __launch_bounds__(kMmaThreads, 1) void keys_mma(const AttentionBackwardArgs args,
                                                           int blocks) {
  take_turn();
  constexpr int kRows = kMmaRows<kWidth>, kStride = kMmaStride<kWidth>, kCount = kRows / 8;
  BFloat16* k = dynamic_shared<BFloat16>();
  BFloat16* v = k + kMmaKeys * kStride;
  BFloat16* q = v + kMmaKeys * kStride;  // two of them
  BFloat16* dout = q + 2 * kRows * kStride;
  RowFacts* facts = reinterpret_cast<RowFacts*>(dout + 2 * kRows * kStride);
  RowView* views = reinterpret_cast<RowView*>(facts + 2 * kRows);
  const Lane lane;
  const Place at(blocks);
  const KvGroup group = kv_group(args, at.group);
  const int first = at.part * kMmaKeys;
  const int64_t rows = args.queries * group.group;
  const float unit = kExtras ? kLog2E : args.scale * kLog2E;

  const int64_t length = keys_of(args, group.b);
  copy_keys_async<kWidth>(args.k, group, first, length, args.head_dim, k);
  copy_keys_async<kWidth>(args.v, group, first, length, args.value_dim, v);

  bool whole = false;
  // The next rows, from `row` on, that see any of the keys; `whole`: all of them see all.
  const auto next = [&](int64_t row) {
    for (; row < rows; row += kRows) {
      const KeyRange top = visible_keys(args, group.b, group.query(row));
      const KeyRange bottom = visible_keys(args, group.b, group.query(min(row + kRows, rows) - 1));
      whole = row + kRows <= rows && bottom.begin <= first && top.end >= first + kMmaKeys;
      if (top.begin < first + kMmaKeys && bottom.end > first) break;
    }
    return row;
  };
  const auto copy_rows = [&](int64_t row, int stage) {
    copy_queries_async<kWidth, kRows>(args.q, group, row, rows, args.head_dim,
                                      q + stage * kRows * kStride);
    copy_queries_async<kWidth, kRows>(args.dout, group, row, rows, args.value_dim,
                                      dout + stage * kRows * kStride);
    if (static_cast<int>(threadIdx.x) < kRows) {
      const int64_t mine = row + threadIdx.x;
      const int place = stage * kRows + static_cast<int>(threadIdx.x);
      const bool valid = mine < rows;
      cp_async16(facts + place,
                 args.scratch.as<RowFacts>() + (valid ? row_index(args, group, mine) : 0), valid);
      if (kExtras || !whole) views[place] = row_view(args, group, mine);
    }
    cp_async_commit();
  };
  float dk[kWidth / 8][4], dv[kWidth / 8][4];
  clear(dk);
  clear(dv);
  int64_t row = next(0);
  if (row < rows) copy_rows(row, 0);
  for (int stage = 0; row < rows; stage ^= 1) {
    const bool masked = !kExtras && !whole;
    const int64_t following = next(row + kRows);
    if (following < rows) {
      copy_rows(following, stage ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const RowFacts* of = facts + stage * kRows;
    const RowView* seen = views + stage * kRows;
    float weight[kCount][4], dscore[kCount][4];
    dots<kWidth>(k, 16 * lane.warp, q + stage * kRows * kStride, lane, weight);
    dots<kWidth>(v, 16 * lane.warp, dout + stage * kRows * kStride, lane, dscore);
    const int my_key = first + 16 * lane.warp + lane.g;
    const bool drops = kExtras && args.dropout.p > 0.0f;
    uint32_t kept = 0;  // bit 4 n + i
    if (drops)
      kept = kept_bits<4 * kCount, false>(args.dropout, [&](int e) {
        return seen[e / 4 * 8 + 2 * lane.t + e % 2].index * args.keys + my_key + e / 2 % 2 * 8;
      });
    if (masked) {
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const RowView mine = seen[8 * n + 2 * lane.t + i % 2];
          const int key = my_key + 8 * (i / 2);
          if (key < mine.begin || key >= mine.end) weight[n][i] = -INFINITY;
        }
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = 8 * n + 2 * lane.t + j;
        const RowFacts mine = of[r];
        const RowView view = kExtras ? seen[r] : RowView{};
#pragma unroll
        for (int i = j; i < 4; i += 2) {
          const int key = my_key + 8 * (i / 2);
          const float factor = drops ? kept_factor(args.dropout, kept, 4 * n + i) : 1.0f;
          dscore[n][i] = take_weight<kExtras>(args, group, row + r, mine, view, key, unit, factor,
                                              weight[n][i], dscore[n][i], [](int, float) {});
        }
      }
    add_products<kWidth>(weight, dout + stage * kRows * kStride, lane, dv);
    add_products<kWidth>(dscore, q + stage * kRows * kStride, lane, dk);
    __syncthreads();
    row = following;
  }
  cp_async_wait<0>();
  const auto to = [&](const HeadView& view) {
    return [&](int half) -> BFloat16* {
      const int64_t key = first + 16 * lane.warp + lane.g + 8 * half;
      return key < args.keys ? view.at<BFloat16>(group.b, key, group.kv_head) : nullptr;
    };
  };
  leave_sums<kWidth>(dk, to(args.dk), args.head_dim, lane, {args.scale, args.scale});
  leave_sums<kWidth>(dv, to(args.dv), args.value_dim, lane, {1.0f, 1.0f});
}

// Grid: kv heads from `first_group` on, `blocks` of rows each. `scores` as in
// attention_backward_cuda.cu.
template <int kWidth, bool kExtras>
__global__ __launch_bounds__(kMmaThreads, kWidth <= 64 && !kExtras ? 3 : 1) void queries_mma(
    const AttentionBackwardArgs args, int blocks, int64_t first_group, float* scores) {
  take_turn();
  constexpr int kRows = 16 * kMmaWarps, kStride = kMmaStride<kWidth>;
  constexpr int kTileSize = kTile * kStride, kCount = kTile / 8;
  BFloat16* q = dynamic_shared<BFloat16>();
  BFloat16* dout = q + kRows * kStride;
  BFloat16* k = dout + kRows * kStride;  // two of them
  BFloat16* v = k + 2 * kTileSize;
  const Lane lane;
  const Place at(blocks);
  const KvGroup group = kv_group(args, first_group + at.group);
  const int64_t rows = args.queries * group.group;
  const int64_t first_row = static_cast<int64_t>(blocks - 1 - at.part) * kRows;
  const float unit = kExtras ? kLog2E : args.scale * kLog2E;
  KeyRange seen = seen_by(args, group, first_row, min(first_row + kRows, rows));
  if (scores != nullptr) seen = {0, args.keys};  // zeros too
  const int begin = static_cast<int>(seen.begin) / kTile * kTile;
  const int end = static_cast<int>(seen.end);
  const int64_t length = keys_of(args, group.b);

  const auto copy_tile = [&](int first, int stage) {
    copy_keys_async<kWidth>(args.k, group, first, length, args.head_dim, k + stage * kTileSize);
    copy_keys_async<kWidth>(args.v, group, first, length, args.value_dim, v + stage * kTileSize);
    cp_async_commit();
  };
  copy_queries_async<kWidth, kRows>(args.q, group, first_row, rows, args.head_dim, q);
  copy_queries_async<kWidth, kRows>(args.dout, group, first_row, rows, args.value_dim, dout);
  if (begin < end) copy_tile(begin, 0);
  const int64_t my_row = first_row + 16 * lane.warp + lane.g;
  const RowView views[2] = {row_view(args, group, my_row), row_view(args, group, my_row + 8)};
  RowFacts facts[2] = {};  // also of rows that are none, and see nothing
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (my_row + 8 * half < rows) facts[half] = args.scratch.as<RowFacts>()[views[half].index];
  float dq[kWidth / 8][4];
  clear(dq);
  int stage = 0;
  for (int first = begin; first < end; first += kTile, stage ^= 1) {
    if (first + kTile < end) {
      copy_tile(first + kTile, stage ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    float weight[kCount][4], dscore[kCount][4];
    dots<kWidth>(q, 16 * lane.warp, k + stage * kTileSize, lane, weight);
    dots<kWidth>(dout, 16 * lane.warp, v + stage * kTileSize, lane, dscore);
    const auto sees_all = [first](const RowView& row) {
      return row.begin <= first && row.end >= first + kTile;
    };
    const bool drops = kExtras && args.dropout.p > 0.0f;
    uint32_t kept[2] = {};
    if (drops)
      for (int half = 0; half < 2; ++half) {
        const int64_t element = views[half].index * args.keys + first + 2 * lane.t;
        kept[half] = kept_bits<kCount, true>(args.dropout, [&](int n) { return element + 8 * n; });
      }
    if (!kExtras && !__all_sync(kAllLanes, sees_all(views[0]) && sees_all(views[1]))) {
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + 8 * n + 2 * lane.t + i % 2;
          if (key < views[i / 2].begin || key >= views[i / 2].end) weight[n][i] = -INFINITY;
        }
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + 8 * n + 2 * lane.t + i % 2;
        const int64_t row = my_row + 8 * (i / 2);
        const float factor = drops ? kept_factor(args.dropout, kept[i / 2], 2 * n + i % 2) : 1.0f;
        dscore[n][i] = take_weight<kExtras>(
            args, group, row, facts[i / 2], views[i / 2], key, unit, factor, weight[n][i],
            dscore[n][i], [&](int, float dbias) {
              if (!kExtras || scores == nullptr || row >= rows || key >= args.keys) return;
              const int64_t of_head = group.head(row) * args.queries + group.query(row);
              scores[of_head * args.keys + key] = dbias;
            });
      }
    add_products<kWidth>(dscore, k + stage * kTileSize, lane, dq);
    __syncthreads();
  }
  cp_async_wait<0>();
  leave_sums<kWidth>(dq,
                     [&](int half) -> BFloat16* {
                       const int64_t row = my_row + 8 * half;
                       return row < rows
                                  ? args.dq.at<BFloat16>(group.b, group.query(row), group.head(row))
                                  : nullptr;
                     },
                     args.head_dim, lane, {args.scale, args.scale});
}

template <class Visit>
void with_kernels(const AttentionBackwardArgs& args, Visit visit) {
  with_bool(args.head_dim > 64 || args.value_dim > 64, [&](auto wide) {
    with_bool(has_extras(args), [&](auto extras) {
      visit(std::integral_constant < int, wide() ? 128 : 64 > {}, extras);
    });
  });
}

}  // namespace

void backward_keys_mma(const Context& context, const AttentionBackwardArgs& args) {
  with_kernels(args, [&](auto width, auto extras) {
    constexpr int kWidth = width(), kRows = kMmaRows<kWidth>;
    const size_t shared = sizeof(BFloat16) * kMmaStride<kWidth> * (2 * kMmaKeys + 4 * kRows) +
                          (sizeof(RowFacts) + sizeof(RowView)) * 2 * kRows;
    const int64_t blocks = blocks_of(args.keys, kMmaKeys);
    launch(context, keys_mma<kWidth, extras()>,
           dim3(static_cast<unsigned>(args.batch * args.kv_heads * blocks)), dim3(kMmaThreads),
           shared, args, static_cast<int>(blocks));
  });
}

void backward_queries_mma(const Context& context, const AttentionBackwardArgs& args,
                          int64_t first_group, int64_t groups, float* scores) {
  with_kernels(args, [&](auto width, auto extras) {
    constexpr int kWidth = width(), kRows = 16 * kMmaWarps;
    const size_t shared = sizeof(BFloat16) * kMmaStride<kWidth> * (2 * kRows + 4 * kTile);
    const int64_t blocks = blocks_of(args.queries * (args.heads / args.kv_heads), kRows);
    launch(context, queries_mma<kWidth, extras()>, dim3(static_cast<unsigned>(groups * blocks)),
           dim3(kMmaThreads), shared, args, static_cast<int>(blocks), first_group, scores);
  });
}

}  // namespace llmcore::cuda
