// Attention's forward pass on a GPU, its weights, and what a cache keeps: blocks of query rows
// against tiles of keys (Dao et al. 2022), in float32 arithmetic where tensor cores do not do it.
//
// A tile's share of a row's output is summed by itself and then joins the row's running softmax, in
// the order of tiles. So where there are few rows, blocks take tiles apart and a second kernel
// joins them, and no bit is other than where one block takes them all.
#include "ops/attention_mma_cuda.h"

namespace llmcore::cuda {
namespace {

constexpr int kRows = 64, kMine = kRows / kSide, kKeys = kTile / kSide;

int64_t partial_bytes(const AttentionArgs& args, const Split& split) {
  return args.batch * args.heads * args.queries * split.tiles * (args.value_dim + 2) *
         static_cast<int64_t>(sizeof(float));
}
int64_t row_blocks(const AttentionArgs& args) {
  return blocks_of(args.queries * (args.heads / args.kv_heads), kRows);
}
bool decodes(const AttentionArgs& args) {
  return args.cache.k.data != nullptr && args.cache.k.dtype == args.cache.v.dtype &&
         args.queries * (args.heads / args.kv_heads) <= kMostDecodeRows;
}
Split split_of(const AttentionArgs& args) {
  // Blocks that fill a GPU, here two on each of its processors, when decoding as many as they hold.
  const int64_t enough = decodes(args) ? 4096 : 264;
  constexpr int64_t kMostBytes = 256 << 20;
  const int64_t blocks = args.batch * args.kv_heads * row_blocks(args);
  Split split{blocks_of(args.keys, kTile), 1, true};
  if (blocks == 0 || split.tiles == 0) return {split.tiles, 1, false};
  split.a_block = blocks_of(split.tiles * blocks, enough);
  if (decodes(args)) return split;
  split.partial = split.a_block < split.tiles && blocks < enough / 2 &&
                  partial_bytes(args, split) <= kMostBytes;
  if (!split.partial) split.a_block = split.tiles;
  return split;
}
int64_t forward_scratch(const AttentionArgs& args) {
  const Split split = split_of(args);
  return split.partial ? partial_bytes(args, split) : 0;
}

// A block's rows, and those of its threads.
struct Rows {
  KvGroup group;
  int64_t first, count;  // of the block
  KeyRange together;
  int64_t mine[kMine];
  KeyRange seen[kMine];
  __device__ bool has(int m) const { return mine[m] < first + count; }
};
__device__ __forceinline__ Rows rows_of_block(const AttentionArgs& args) {
  Rows rows;
  rows.group = kv_group(args, blockIdx.x);
  const int64_t all = args.queries * rows.group.group;
  rows.first = static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * kRows;  // long ones first
  rows.count = min(all - rows.first, static_cast<int64_t>(kRows));
  rows.together = seen_by(args, rows.group, rows.first, rows.first + rows.count);
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    rows.mine[m] = rows.first + static_cast<int64_t>(threadIdx.x) / kSide + m * kSide;
    rows.seen[m] = {0, 0};
    if (rows.has(m))
      rows.seen[m] = visible_keys(args, rows.group.b, rows.group.query(rows.mine[m]));
  }
  return rows;
}

template <class T>
__device__ __forceinline__ void enter_queries(const AttentionArgs& args, const Rows& rows,
                                              bool round, float* q) {
  enter_rows(
      [&](int r) {
        const int64_t row = rows.first + r;
        return args.q.template at<T>(rows.group.b, rows.group.query(row), rows.group.head(row));
      },
      kRows, rows.count, args.head_dim, args.scale, round, q);
}

// The keys, or values, from `first` on.
template <class T>
__device__ __forceinline__ void enter_tile(const AttentionArgs& args, const KvGroup& group,
                                           const HeadView& view, const KvTiles& kept, int64_t width,
                                           int64_t first, bool round, float* to) {
  const int64_t count = keys_of(args, group.b) - first;
  if (kept.data != nullptr) return enter_kept(args.cache, kept, group, first, count, to);
  enter_rows([&](int j) { return view.at<T>(group.b, first + j, group.kv_head); }, kTile, count,
             width, 1.0f, round, to);
}

// The scores of the tile from `first` on, of which `q` and `k` are in shared memory.
__device__ __forceinline__ void take_scores(const AttentionArgs& args, const Rows& rows,
                                            int64_t first, const float* q, const float* k,
                                            float (&score)[kMine][kKeys]) {
#pragma unroll
  for (int m = 0; m < kMine; ++m)
#pragma unroll
    for (int n = 0; n < kKeys; ++n) score[m][n] = 0.0f;
  add_dots(q, k, args.head_dim, score);
  const int x = static_cast<int>(threadIdx.x) % kSide;
#pragma unroll
  for (int n = 0; n < kKeys; ++n) {
    const int64_t key = first + x + n * kSide;
    float factor = 1.0f, slope;
    if (args.cache.k.dtype == DType::kInt8 && args.cache.k.data != nullptr &&
        key < keys_of(args, rows.group.b))
      factor = scale_of(args.cache, args.cache.k, rows.group.b, rows.group.kv_head, key);
#pragma unroll
    for (int m = 0; m < kMine; ++m)
      score[m][n] = finish_score(args, rows.group, rows.mine[m], rows.seen[m], key,
                                 score[m][n] * factor, slope);
  }
}

// A row's scores become exp(score - highest); its highest and their sum.
__device__ __forceinline__ void exponentials(float (&score)[kKeys], float& highest, float& sum) {
  float most = score[0];
#pragma unroll
  for (int n = 1; n < kKeys; ++n) most = larger(most, score[n]);
  highest = across(most, [](float a, float b) { return larger(a, b); });
  float mine = 0.0f;
#pragma unroll
  for (int n = 0; n < kKeys; ++n) {
    score[n] = highest == -INFINITY ? 0.0f : expf(score[n] - highest);
    mine += score[n];
  }
  sum = across(mine, [](float a, float b) { return a + b; });
}

// Grid: kv heads of all sequences, blocks of rows, splits.
template <class T, int kColumns>
__global__ __launch_bounds__(kBlockThreads, 1) void forward_rows(const AttentionForwardArgs args,
                                                                 const Split split, bool round) {
  take_turn();
  const Rows rows = rows_of_block(args);
  const int64_t begin =
      max(static_cast<int64_t>(blockIdx.z) * split.a_block, rows.together.begin / kTile);
  const int64_t end = min(static_cast<int64_t>(blockIdx.z + 1) * split.a_block,
                          (rows.together.end + kTile - 1) / kTile);
  if (split.partial && begin >= end) return;
  float* q = dynamic_shared<float>();
  float* kv = q + kRows * row_stride(args.head_dim);
  float* weights = kv + kTile * max(row_stride(args.head_dim), row_stride(args.value_dim));
  enter_queries<T>(args, rows, round, q);
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const bool scaled = args.cache.v.data != nullptr && args.cache.v.dtype == DType::kInt8;
  float total[kMine][4 * kColumns] = {};
  Softmax softmax[kMine];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTile;
    __syncthreads();
    enter_tile<T>(args, rows.group, args.k, args.cache.k, args.head_dim, first, round, kv);
    __syncthreads();
    float score[kMine][kKeys], highest[kMine], sum[kMine];
    take_scores(args, rows, first, q, kv, score);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      exponentials(score[m], highest[m], sum[m]);
      const int64_t index = rows.has(m) ? row_index(args, rows.group, rows.mine[m]) : 0;
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        const int64_t key = first + x + n * kSide;
        float weight = score[m][n];
        if (args.dropout.p > 0.0f && weight != 0.0f) weight *= weight_factor(args, index, key);
        if (scaled && weight != 0.0f)
          weight *= scale_of(args.cache, args.cache.v, rows.group.b, rows.group.kv_head, key);
        weights[(y + m * kSide) * kScoreStride + x + n * kSide] = rounded(weight, round);
      }
    }
    __syncthreads();
    enter_tile<T>(args, rows.group, args.v, args.cache.v, args.value_dim, first, round, kv);
    __syncthreads();
    float part[kMine][4 * kColumns] = {};
    add_weighted<kMine, kColumns>(
        [&](int m, int j) { return weights[(y + m * kSide) * kScoreStride + j]; }, kv,
        args.value_dim, kTile, part);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      if (split.partial) {
        if (!rows.has(m)) continue;
        float* to =
            args.scratch.as<float>() +
            (row_index(args, rows.group, rows.mine[m]) * split.tiles + tile) * (args.value_dim + 2);
        leave_row<float, kColumns>(part[m], 1.0f, args.value_dim, to + 2);
        if (x == 0) {
          to[0] = highest[m];
          to[1] = sum[m];
        }
        continue;
      }
      const Softmax::Factors factors = softmax[m].add(highest[m], sum[m]);
#pragma unroll
      for (int c = 0; c < 4 * kColumns; ++c)
        total[m][c] = fmaf(total[m][c], factors.kept, part[m][c] * factors.added);
    }
  }
  if (split.partial) return;
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    if (!rows.has(m)) continue;
    const int64_t row = rows.mine[m];
    leave_row<T, kColumns>(
        total[m], softmax[m].share(), args.value_dim,
        args.out.template at<T>(rows.group.b, rows.group.query(row), rows.group.head(row)));
    if (x == 0) leave_softmax(args, row_index(args, rows.group, row), softmax[m]);
  }
}

// Grid: rows.
template <class T>
__global__ void join_tiles(const AttentionForwardArgs args, const Split split) {
  take_turn();
  const int64_t row = blockIdx.x, i = row % args.queries;
  join_row<T>(args, split, row / args.queries / args.heads, row / args.queries % args.heads, i);
}

// The scores first, then what the running softmax came to. Grid: kv heads, blocks of rows.
template <class T>
__global__ __launch_bounds__(kBlockThreads, 1) void weights_of_rows(const AttentionWeightsArgs args,
                                                                    bool round) {
  take_turn();
  const Rows rows = rows_of_block(args);
  float* q = dynamic_shared<float>();
  float* k = q + kRows * row_stride(args.head_dim);
  enter_queries<T>(args, rows, round, q);
  const int x = static_cast<int>(threadIdx.x) % kSide;
  Softmax softmax[kMine];
  for (int64_t first = 0; first < args.keys; first += kTile) {
    __syncthreads();
    enter_tile<T>(args, rows.group, args.k, {}, args.head_dim, first, round, k);
    __syncthreads();
    float score[kMine][kKeys];
    take_scores(args, rows, first, q, k, score);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      float* to = args.weights + row_index(args, rows.group, rows.mine[m]) * args.keys + first;
#pragma unroll
      for (int n = 0; n < kKeys; ++n)
        if (rows.has(m) && first + x + n * kSide < args.keys) to[x + n * kSide] = score[m][n];
      float highest, sum;
      exponentials(score[m], highest, sum);
      softmax[m].add(highest, sum);
    }
  }
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    if (!rows.has(m)) continue;
    float* to = args.weights + row_index(args, rows.group, rows.mine[m]) * args.keys;
    for (int64_t j = x; j < args.keys; j += kSide)  // which this thread has written
      to[j] = softmax[m].highest == -INFINITY ? 0.0f
                                              : expf(to[j] - softmax[m].highest) / softmax[m].sum;
  }
}

dim3 grid_of(const AttentionArgs& args, int64_t splits) {
  return dim3(static_cast<unsigned>(args.batch * args.kv_heads),
              static_cast<unsigned>(row_blocks(args)), static_cast<unsigned>(splits));
}
size_t shared_bytes(const AttentionArgs& args, bool values) {
  const int k = row_stride(args.head_dim), v = values ? row_stride(args.value_dim) : 0;
  const int floats = kRows * k + kTile * (k > v ? k : v) + (values ? kRows * kScoreStride : 0);
  return static_cast<size_t>(floats) * sizeof(float);
}

void forward(const Context& context, const AttentionForwardArgs& args) {
  if (fits_tensor_cores(args, args.out)) return attention_forward_mma(context, args);
  const Split split = split_of(args);
  const int64_t splits = split.partial ? blocks_of(split.tiles, split.a_block) : 1;
  with_columns(args.head_dim, [](auto) {});
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    bool joined = !split.partial;
    with_columns(args.value_dim, [&](auto columns) {
      if (split.partial && decodes(args)) {
        joined = attention_decode(context, args, split);
        return;
      }
      launch(context, forward_rows<T, columns()>, grid_of(args, splits), dim3(kBlockThreads),
             shared_bytes(args, true), args, split, rounds(context, args));
    });
    if (!joined)
      launch(context, join_tiles<T>,
             dim3(static_cast<unsigned>(args.batch * args.heads * args.queries)), dim3(64), 0, args,
             split);
  });
}

void weights(const Context& context, const AttentionWeightsArgs& args) {
  with_columns(args.head_dim, [](auto) {});
  with_type(args.dtype, [&](auto type) {
    launch(context, weights_of_rows<decltype(type)>, grid_of(args, 1), dim3(kBlockThreads),
           shared_bytes(args, false), args, rounds(context, args));
  });
}

// ---- What a cache keeps ----

// A warp for each new token, kv head, and keys or values.
template <class T>
__global__ void append_tokens(const AttentionAppendArgs args) {
  take_turn();
  const int64_t heads = args.cache.k.heads, task = thread_index() / kWarp;
  const int64_t head = task / 2 % heads, t = task / 2 / heads % args.tokens;
  const int64_t b = task / 2 / heads / args.tokens;
  if (b >= args.batch) return;
  const int64_t token = t + (args.past ? args.past.as<int32_t>()[b] : 0);
  if (token >= args.kv_lengths.as<int32_t>()[b]) return;
  const int64_t row = args.cache.row(b, token);
  if (task % 2 == 0)
    keep_token(args.cache.k, args.k.template at<T>(b, t, head), row, head, token);
  else
    keep_token(args.cache.v, args.v.template at<T>(b, t, head), row, head, token);
}

void append(const Context& context, const AttentionAppendArgs& args) {
  const int64_t warps = args.batch * args.tokens * args.cache.k.heads * 2;
  if (warps == 0) return;
  with_type(context.activations, [&](auto type) {
    launch_each(context, append_tokens<decltype(type)>, warps * kWarp, args);
  });
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {
    .forward_scratch = forward_scratch,
    .backward_scratch = attention_backward_scratch,
    .forward = forward,
    .backward = attention_backward,
    .weights = weights,
    .append = append,
    .appends = decodes,
};

}  // namespace llmcore::cuda
