// Attention's forward pass on tensor cores (Dao 2023): bfloat16 in and out, sums and softmax in
// float32. Tiles of keys and values arrive while those before them are multiplied.
#include "ops/attention_mma_cuda.h"

namespace llmcore::cuda {
namespace {

// Rows of a warp, in sixteens: as many as registers hold.
template <int kWidth, bool kExtras>
inline constexpr int kSixteens = kWidth <= 64 && !kExtras ? 2 : 1;

// Query rows g and g + 8 of sixteen of them, in a lane.
struct LaneRows {
  int64_t row[2];
  int begin[2], end[2];
};
__device__ __forceinline__ LaneRows lane_rows(const AttentionArgs& args, const KvGroup& group,
                                              int64_t first) {
  const Lane lane;
  LaneRows rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    rows.row[half] = first + lane.g + 8 * half;
    rows.begin[half] = rows.end[half] = 0;
    if (rows.row[half] >= args.queries * group.group) continue;
    const KeyRange seen = visible_keys(args, group.b, group.query(rows.row[half]));
    rows.begin[half] = static_cast<int>(seen.begin);
    rows.end[half] = static_cast<int>(seen.end);
  }
  return rows;
}

// Grid: kv heads of all sequences, `blocks` of rows each.
template <int kWidth, bool kExtras>
__global__ __launch_bounds__(kMmaThreads, 1) void forward_mma(const AttentionForwardArgs args,
                                                              int blocks) {
  take_turn();
  constexpr int kM = kSixteens<kWidth, kExtras>, kBlockRows = 16 * kM * kMmaWarps;
  constexpr int kStride = kMmaStride<kWidth>, kTileSize = kTile * kStride;
  BFloat16* q = dynamic_shared<BFloat16>();
  BFloat16* k = q + kBlockRows * kStride;  // two of them
  BFloat16* v = k + 2 * kTileSize;
  const Lane lane;
  const Place at(blocks);
  const KvGroup group = kv_group(args, at.group);
  const int64_t rows = args.queries * group.group;
  const int64_t first_row = static_cast<int64_t>(blocks - 1 - at.part) * kBlockRows;
  const KeyRange together = seen_by(args, group, first_row, min(first_row + kBlockRows, rows));
  const int begin = static_cast<int>(together.begin) / kTile * kTile;
  const int end = static_cast<int>(together.end);
  const int64_t length = keys_of(args, group.b);

  const auto copy_tile = [&](int first, int stage) {
    copy_keys_async<kWidth>(args.k, group, first, length, args.head_dim, k + stage * kTileSize);
    copy_keys_async<kWidth>(args.v, group, first, length, args.value_dim, v + stage * kTileSize);
    cp_async_commit();
  };
  copy_queries_async<kWidth, kBlockRows>(args.q, group, first_row, rows, args.head_dim, q);
  if (begin < end) copy_tile(begin, 0);

  const int warp_row = 16 * kM * lane.warp;
  LaneRows mine[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) mine[m] = lane_rows(args, group, first_row + warp_row + 16 * m);
  // What all rows of the warp see, and what any does.
  int all_begin = 0, all_end = 0, any_begin = 0, any_end = 0;
  if (first_row + warp_row < rows) {
    const int64_t first = first_row + warp_row, last = min(first + 16 * kM, rows) - 1;
    const KeyRange top = visible_keys(args, group.b, group.query(first));
    const KeyRange bottom = visible_keys(args, group.b, group.query(last));
    any_begin = static_cast<int>(top.begin);
    any_end = static_cast<int>(bottom.end);
    all_begin = static_cast<int>(bottom.begin);
    all_end = static_cast<int>(top.end);
  }
  // Scores are kept in units of `unit`, powers of 2.
  const float unit = kExtras ? kLog2E : args.scale * kLog2E;
  float total[kM][kWidth / 8][4], highest[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    clear(total[m]);
    highest[m][0] = highest[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = 0.0f;
  }
  int stage = 0;
  for (int first = begin; first < end; first += kTile, stage ^= 1) {
    if (first + kTile < end) {
      copy_tile(first + kTile, stage ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    if (first < any_end && first + kTile > any_begin) {
      const bool whole = first >= all_begin && first + kTile <= all_end;
      float score[kM][kTile / 8][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) clear(score[m]);
#pragma unroll
      for (int c = 0; c < kWidth; c += 16) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) left_fragment<kWidth>(q, warp_row + 16 * m, c, lane, a[m]);
#pragma unroll
        for (int n = 0; n < kTile / 8; n += 2) {
          uint32_t b[4];
          right_rows<kWidth>(k + stage * kTileSize, 8 * n, c, lane, b);
#pragma unroll
          for (int m = 0; m < kM; ++m) multiply_both(score[m][n], score[m][n + 1], a[m], b);
        }
      }
      if (!kExtras && !whole) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int key = first + 8 * n + 2 * lane.t + i % 2;
              if (key < mine[m].begin[i / 2] || key >= mine[m].end[i / 2])
                score[m][n][i] = -INFINITY;
            }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = first + 8 * n + 2 * lane.t + i % 2, half = i / 2;
            float& x = score[m][n][i];
            if (kExtras) {
              float slope;
              const KeyRange seen{mine[m].begin[half], mine[m].end[half]};
              x = finish_score(args, group, mine[m].row[half], seen, key, x * args.scale, slope);
            }
            most[half] = fmaxf(most[half], x);
          }
        float base[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          most[half] = across_row(most[half], [](float x, float y) { return fmaxf(x, y); });
          const float now = fmaxf(highest[m][half], most[half]);
          base[half] = now == -INFINITY ? 0.0f : now * unit;
          const float kept = fast_exp2(fmaf(highest[m][half], unit, -base[half]));
          highest[m][half] = now;
          sum[m][half] *= kept;
#pragma unroll
          for (int n = 0; n < kWidth / 8; ++n) {
            total[m][n][2 * half] *= kept;
            total[m][n][2 * half + 1] *= kept;
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const bool drops = kExtras && args.dropout.p > 0.0f && mine[m].row[half] < rows;
          uint32_t kept = 0;
          if (drops) {
            const int64_t element =
                row_index(args, group, mine[m].row[half]) * args.keys + first + 2 * lane.t;
            kept = kept_bits<kTile / 8, true>(args.dropout, [&](int n) { return element + 8 * n; });
          }
#pragma unroll
          for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              float& x = score[m][n][2 * half + j];
              x = fast_exp2(fmaf(x, unit, -base[half]));
              sum[m][half] += x;
              if (drops) x *= kept_factor(args.dropout, kept, 2 * n + j);
            }
        }
      }
#pragma unroll
      for (int j = 0; j < kTile / 8; j += 2) {
        uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) as_left(score[m][j], score[m][j + 1], a[m]);
#pragma unroll
        for (int n = 0; n < kWidth / 8; n += 2) {
          uint32_t b[4];
          right_columns<kWidth>(v + stage * kTileSize, 8 * j, 8 * n, lane, b);
#pragma unroll
          for (int m = 0; m < kM; ++m) multiply_both(total[m][n], total[m][n + 1], a[m], b);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = across_row(sum[m][half], [](float x, float y) { return x + y; });
      factor[half] = all == 0.0f ? 0.0f : 1.0f / all;
      if (args.softmax == nullptr || lane.t != 0 || mine[m].row[half] >= rows) continue;
      float* to = args.softmax + 2 * row_index(args, group, mine[m].row[half]);
      to[0] = kExtras ? highest[m][half] : highest[m][half] * args.scale;
      to[1] = all == 0.0f ? 0.0f : logf(all);
    }
    leave_sums<kWidth>(
        total[m],
        [&](int half) {
          const int64_t row = mine[m].row[half];
          return row < rows ? args.out.at<BFloat16>(group.b, group.query(row), group.head(row))
                            : nullptr;
        },
        args.value_dim, lane, factor);
  }
}

template <int kWidth>
void run(const Context& context, const AttentionForwardArgs& args) {
  with_bool(has_extras(args), [&](auto extras) {
    constexpr int kBlockRows = 16 * kSixteens<kWidth, extras()> * kMmaWarps;
    const int64_t rows = args.queries * (args.heads / args.kv_heads);
    const int64_t blocks = blocks_of(rows, kBlockRows);
    launch(context, forward_mma<kWidth, extras()>,
           dim3(static_cast<unsigned>(args.batch * args.kv_heads * blocks)), dim3(kMmaThreads),
           sizeof(BFloat16) * kMmaStride<kWidth> * (kBlockRows + 4 * kTile), args,
           static_cast<int>(blocks));
  });
}

}  // namespace

void attention_forward_mma(const Context& context, const AttentionForwardArgs& args) {
  if (args.head_dim <= 64 && args.value_dim <= 64)
    run<64>(context, args);
  else
    run<128>(context, args);
}

}  // namespace llmcore::cuda
