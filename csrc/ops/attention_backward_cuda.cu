// Attention's backward pass on a GPU, in float32 arithmetic where
// tensor cores do not do it: the weights come again from the scores
// and what forward saved of their softmax (Dao et al. 2022; attention_backward_cpu.cpp has the
// formulas). One kernel goes through tiles of keys, one through blocks of rows, so that each
// gradient is summed by one thread, in order.
#include "ops/attention_mma_cuda.h"

namespace llmcore::cuda {
namespace {

// Rows and keys of a tile: what leaves room in shared memory for four of them.
template <int kColumns>
inline constexpr int kBackTile = kColumns == 1 ? 64 : 32;

struct BackRow {
  int64_t row, index;  // of the kv head; of [B, H, T]
  KeyRange seen;
  RowFacts facts;
};
__device__ __forceinline__ BackRow back_row(const AttentionBackwardArgs& args, const KvGroup& group,
                                            int64_t row) {
  if (row >= args.queries * group.group) return {row, 0, {0, 0}, {INFINITY, 0.0f, 0.0f, 0.0f}};
  const int64_t index = row_index(args, group, row);
  return {row, index, visible_keys(args, group.b, group.query(row)),
          args.scratch.as<RowFacts>()[index]};
}

// What is in shared memory.
template <int kColumns>
struct Tiles {
  static constexpr int kSize = kBackTile<kColumns>, kStride = kSize + 4, kM = kSize / kSide;
  float *q, *dout, *k, *v;
  float *weights, *dscores;  // [kSize rows, kStride]

  __device__ explicit Tiles(const AttentionArgs& args) {
    q = dynamic_shared<float>();
    k = q + kSize * row_stride(args.head_dim);
    dout = k + kSize * row_stride(args.head_dim);
    v = dout + kSize * row_stride(args.value_dim);
    weights = v + kSize * row_stride(args.value_dim);
    dscores = weights + kSize * kStride;
  }
  static size_t bytes(const AttentionArgs& args) {
    return sizeof(float) * kSize *
           static_cast<size_t>(2 * row_stride(args.head_dim) + 2 * row_stride(args.value_dim) +
                               2 * kStride);
  }
  template <class T>
  __device__ __forceinline__ void enter_queries(const AttentionBackwardArgs& args,
                                                const KvGroup& group, int64_t first, bool round) {
    const int64_t count = args.queries * group.group - first;
    const auto rows = [&](const HeadView& view) {
      return [&view, &group, first](int r) {
        return view.at<T>(group.b, group.query(first + r), group.head(first + r));
      };
    };
    enter_rows(rows(args.q), kSize, count, args.head_dim, args.scale, round, q);
    enter_rows(rows(args.dout), kSize, count, args.value_dim, 1.0f, round, dout);
  }
  template <class T>
  __device__ __forceinline__ void enter_keys(const AttentionBackwardArgs& args,
                                             const KvGroup& group, int64_t first, bool round) {
    const int64_t count = keys_of(args, group.b) - first;
    const auto rows = [&](const HeadView& view) {
      return
          [&view, &group, first](int j) { return view.at<T>(group.b, first + j, group.kv_head); };
    };
    enter_rows(rows(args.k), kSize, count, args.head_dim, 1.0f, round, k);
    enter_rows(rows(args.v), kSize, count, args.value_dim, 1.0f, round, v);
  }

  // From the tiles to the weights and the gradients of scores; those before the softcap's slope go
  // to bias(m, key, dscore).
  template <class Bias>
  __device__ __forceinline__ void take(const AttentionBackwardArgs& args, const KvGroup& group,
                                       const BackRow (&rows)[kM], int64_t first_key, bool round,
                                       Bias bias) {
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    float score[kM][kM] = {}, dweight[kM][kM] = {};
    add_dots(q, k, args.head_dim, score);
    add_dots(dout, v, args.value_dim, dweight);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kM; ++n) {
        const int64_t key = first_key + x + n * kSide;
        const BackRow& row = rows[m];
        float slope;
        const float finished =
            finish_score(args, group, row.row, row.seen, key, score[m][n], slope);
        const float p =
            finished == -INFINITY ? 0.0f : expf((finished - row.facts.highest) - row.facts.log_sum);
        const float factor =
            args.dropout.p > 0.0f && p != 0.0f ? weight_factor(args, row.index, key) : 1.0f;
        // What weighs nothing has none, be it NaN: it may be hidden.
        const float dscore = p == 0.0f ? 0.0f : p * (dweight[m][n] * factor - row.facts.delta);
        bias(m, key, dscore);
        const int place = (y + m * kSide) * kStride + x + n * kSide;
        weights[place] = rounded(p * factor, round);
        dscores[place] = rounded(p == 0.0f ? 0.0f : dscore * slope, round);
      }
  }
};

// Grid: rows of [B, H, T], one a warp. `unit`: what scores are times in facts.
template <class T>
__global__ void leave_facts(const AttentionBackwardArgs args, float unit) {
  take_turn();
  const int64_t row = thread_index() / kWarp;
  if (row >= args.batch * args.heads * args.queries) return;
  const int64_t i = row % args.queries, h = row / args.queries % args.heads;
  const int64_t b = row / args.queries / args.heads;
  const T* out = args.out.template at<T>(b, i, h);
  const T* dout = args.dout.template at<T>(b, i, h);
  const float highest = args.softmax[2 * row], log_sum = args.softmax[2 * row + 1];
  float sum = 0.0f;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) % kWarp; c < args.value_dim; c += kWarp)
    sum = fmaf(as_float(out[c]), as_float(dout[c]), sum);
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0)
    args.scratch.as<RowFacts>()[row] = {highest == -INFINITY ? INFINITY : highest * unit,
                                        log_sum * unit, sum, 0.0f};
}

// Grid: kv heads of all sequences, tiles of keys.
template <class T, int kColumns>
__global__ __launch_bounds__(kBlockThreads, 1) void backward_keys(const AttentionBackwardArgs args,
                                                                  bool round) {
  take_turn();
  using Shared = Tiles<kColumns>;
  constexpr int kM = Shared::kM, kSize = Shared::kSize;
  Shared tiles(args);
  const KvGroup group = kv_group(args, blockIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kSize;
  const int64_t rows = args.queries * group.group;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  tiles.template enter_keys<T>(args, group, first, round);
  float dk[kM][4 * kColumns] = {}, dv[kM][4 * kColumns] = {};
  for (int64_t first_row = 0; first_row < rows; first_row += kSize) {
    const KeyRange seen = seen_by(args, group, first_row, min(first_row + kSize, rows));
    if (seen.end <= first || seen.begin >= first + kSize) continue;
    __syncthreads();
    tiles.template enter_queries<T>(args, group, first_row, round);
    BackRow mine[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) mine[m] = back_row(args, group, first_row + y + m * kSide);
    __syncthreads();
    tiles.take(args, group, mine, first, round, [](int, int64_t, float) {});
    __syncthreads();
    const auto weight = [&](const float* from) {
      return [from, y](int m, int r) { return from[r * Shared::kStride + y + m * kSide]; };
    };
    add_weighted<kM, kColumns>(weight(tiles.weights), tiles.dout, args.value_dim, kSize, dv);
    add_weighted<kM, kColumns>(weight(tiles.dscores), tiles.q, args.head_dim, kSize, dk);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int64_t key = first + y + m * kSide;
    if (key >= args.keys) continue;
    leave_row<T, kColumns>(dk[m], 1.0f, args.head_dim,
                           args.dk.template at<T>(group.b, key, group.kv_head));
    leave_row<T, kColumns>(dv[m], 1.0f, args.value_dim,
                           args.dv.template at<T>(group.b, key, group.kv_head));
  }
}

// Grid: kv heads from `first_group` on, blocks of rows. `scores`, if given, receives the gradients
// of all scores of one sequence, [H, T, S].
template <class T, int kColumns>
__global__ __launch_bounds__(kBlockThreads,
                             1) void backward_queries(const AttentionBackwardArgs args, bool round,
                                                      int64_t first_group, float* scores) {
  take_turn();
  using Shared = Tiles<kColumns>;
  constexpr int kM = Shared::kM, kSize = Shared::kSize;
  Shared tiles(args);
  const KvGroup group = kv_group(args, first_group + blockIdx.x);
  const int64_t rows = args.queries * group.group;
  const int64_t first_row = static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * kSize;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  KeyRange seen = seen_by(args, group, first_row, min(first_row + kSize, rows));
  if (scores != nullptr) seen = {0, args.keys};  // zeros too
  tiles.template enter_queries<T>(args, group, first_row, round);
  BackRow mine[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) mine[m] = back_row(args, group, first_row + y + m * kSide);
  float dq[kM][4 * kColumns] = {};
  for (int64_t first = seen.begin / kSize * kSize; first < seen.end; first += kSize) {
    __syncthreads();
    tiles.template enter_keys<T>(args, group, first, round);
    __syncthreads();
    tiles.take(args, group, mine, first, round, [&](int m, int64_t key, float dscore) {
      if (scores == nullptr || key >= args.keys || mine[m].row >= rows) return;
      scores[(mine[m].index - group.b * args.heads * args.queries) * args.keys + key] = dscore;
    });
    __syncthreads();
    add_weighted<kM, kColumns>(
        [&](int m, int j) { return tiles.dscores[(y + m * kSide) * Shared::kStride + j]; }, tiles.k,
        args.head_dim, kSize, dq);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (mine[m].row < rows)
      leave_row<T, kColumns>(
          dq[m], args.scale, args.head_dim,
          args.dq.template at<T>(group.b, group.query(mine[m].row), group.head(mine[m].row)));
}

// How elements of a bias are shared: by what numbers of [H, T, S] an element is told from others.
struct BiasSharing {
  int64_t heads, queries, keys;  // 1 where elements are the same for all
  bool diagonal;                 // an element for each j - i: `keys` counts them
  LLMCORE_INLINE int64_t elements() const { return heads * queries * keys; }
};
BiasSharing sharing_of(const AttentionBackwardArgs& args) {
  const int64_t* stride = args.dbias.stride;
  const int64_t heads = stride[1] != 0 ? args.heads : 1;
  if (stride[2] != 0 && stride[2] == -stride[3])
    return {heads, 1, args.queries + args.keys - 1, true};
  return {heads, stride[2] != 0 ? args.queries : 1, stride[3] != 0 ? args.keys : 1, false};
}

// Adds to each element the gradients of the scores of sequence b that share it, a warp an element.
__global__ void add_bias_gradient(const AttentionBackwardArgs args, const BiasSharing sharing,
                                  int64_t b, const float* scores) {
  take_turn();
  const int64_t element = thread_index() / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (element >= sharing.elements()) return;
  const int64_t e_key = element % sharing.keys, e_query = element / sharing.keys % sharing.queries;
  const int64_t e_head = element / sharing.keys / sharing.queries;
  const int64_t heads = args.heads / sharing.heads, queries = args.queries, keys = args.keys;
  float sum = 0.0f;
  int64_t i0 = e_query, j0 = e_key;  // of the first score that shares the element
  if (sharing.diagonal) {
    i0 = max(static_cast<int64_t>(0), queries - 1 - e_key);
    j0 = max(static_cast<int64_t>(0), e_key - (queries - 1));
  }
  for (int64_t h = e_head; h < e_head + heads; ++h) {
    const float* from = scores + h * queries * keys;
    if (sharing.diagonal) {
      for (int64_t n = lane; i0 + n < queries && j0 + n < keys; n += kWarp)
        sum += from[(i0 + n) * keys + j0 + n];
    } else {
      const int64_t columns = keys / sharing.keys, count = queries / sharing.queries * columns;
      for (int64_t n = lane; n < count; n += kWarp)
        sum += from[(i0 + n / columns) * keys + j0 + n % columns];
    }
  }
  sum = warp_sum(sum);
  const int64_t* stride = args.dbias.stride;
  if (lane == 0)
    static_cast<float*>(
        args.dbias.data)[b * stride[0] + e_head * stride[1] + i0 * stride[2] + j0 * stride[3]] +=
        sum;
}

int64_t facts_bytes(const AttentionArgs& args) {
  return args.batch * args.heads * args.queries * static_cast<int64_t>(sizeof(RowFacts));
}

template <class T, int kColumns>
void keys(const Context& context, const AttentionBackwardArgs& args) {
  launch(context, backward_keys<T, kColumns>,
         dim3(static_cast<unsigned>(args.batch * args.kv_heads),
              static_cast<unsigned>(blocks_of(args.keys, kBackTile<kColumns>))),
         dim3(kBlockThreads), Tiles<kColumns>::bytes(args), args, rounds(context, args));
}
template <class T, int kColumns>
void queries(const Context& context, const AttentionBackwardArgs& args, int64_t first_group,
             int64_t groups, float* scores) {
  const int64_t rows = args.queries * (args.heads / args.kv_heads);
  launch(context, backward_queries<T, kColumns>,
         dim3(static_cast<unsigned>(groups),
              static_cast<unsigned>(blocks_of(rows, kBackTile<kColumns>))),
         dim3(kBlockThreads), Tiles<kColumns>::bytes(args), args, rounds(context, args),
         first_group, scores);
}

struct Launchers {
  float unit;  // of the scores in facts
  void (*keys)(const Context&, const AttentionBackwardArgs&);
  void (*queries)(const Context&, const AttentionBackwardArgs&, int64_t first_group, int64_t groups,
                  float* scores);
};

void run(const Context& context, const AttentionBackwardArgs& args, const Launchers& launchers) {
  const int64_t groups = args.batch * args.kv_heads;
  const int64_t rows = args.batch * args.heads * args.queries;
  if (rows > 0)
    with_type(args.dtype, [&](auto type) {
      launch_each(context, leave_facts<decltype(type)>, rows * kWarp, args, launchers.unit);
    });
  if (groups * args.keys > 0) launchers.keys(context, args);
  if (rows == 0) return;
  if (args.dbias.data == nullptr || args.keys == 0)
    return launchers.queries(context, args, 0, groups, nullptr);
  float* scores = args.scratch.as<float>() + facts_bytes(args) / sizeof(float);
  const BiasSharing sharing = sharing_of(args);
  for (int64_t b = 0; b < args.batch; ++b) {  // one after the other: shared elements are summed
    launchers.queries(context, args, b * args.kv_heads, args.kv_heads, scores);
    launch_each(context, add_bias_gradient, sharing.elements() * kWarp, args, sharing, b, scores);
  }
}

}  // namespace

int64_t attention_backward_scratch(const AttentionArgs& args) {
  const int64_t scores = args.bias.data != nullptr ? args.heads * args.queries * args.keys : 0;
  return facts_bytes(args) + scores * static_cast<int64_t>(sizeof(float));
}

void attention_backward(const Context& context, const AttentionBackwardArgs& args) {
  if (fits_tensor_cores(args, args.out, args.dout, args.dq, args.dk, args.dv))
    return run(context, args, {kLog2E, backward_keys_mma, backward_queries_mma});
  with_type(args.dtype, [&](auto type) {
    const int64_t width = args.head_dim > args.value_dim ? args.head_dim : args.value_dim;
    with_columns(width, [&](auto columns) {
      run(context, args,
          {1.0f, keys<decltype(type), columns()>, queries<decltype(type), columns()>});
    });
  });
}

}  // namespace llmcore::cuda
