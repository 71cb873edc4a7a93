// Attention of a few query rows over a cache, as decoding asks for it: all keys are read once, by
// many blocks, straight from where they are kept.
//
// A block takes a tile of 64 keys, a thread a key, whose words lie side by side with those of its
// neighbours; then a thread takes columns of the values, which came to shared memory meanwhile. It
// leaves partial sums, in the order in which attention_cuda.cu takes them: no bit tells which of
// the two computed a row. Where rows are joined soon, the last of their blocks does it: a kernel
// less to wait for.
#include "cuda/integers.h"
#include "ops/attention_cuda.h"

namespace llmcore::cuda {
namespace {

constexpr int kThreads = kTile, kWarps = kThreads / kWarp;
constexpr int kAcross = 8;  // threads that copy one value, and values that a thread copies
static_assert(kAcross * kAcross == kThreads);
// Numbers of a key that are read before they are multiplied: as many as registers hold.
constexpr int step_of(int rows) {
  return rows <= 2 ? 64 : 16;
}

// How many blocks of each kv head's rows have come to their end; zeros between kernels, of which
// the queue has one at a time.
constexpr int64_t kMostGroups = 1 << 14;
__device__ unsigned ended[kMostGroups];

// Whether the last block joins all. It has few threads: one row at a time, while a kernel of its
// own takes all rows at once.
bool joins(const AttentionForwardArgs& args, const Split& split) {
  constexpr int64_t kMostTiles = 16;  // in turn, of several rows
  const int64_t rows = args.queries * (args.heads / args.kv_heads);
  return args.batch * args.kv_heads <= kMostGroups &&
         (rows == 1 || rows * split.tiles <= kMostTiles);
}

template <int kRows>
LLMCORE_INLINE int query_stride(int64_t width) {
  constexpr int kStep = step_of(kRows);
  return (static_cast<int>(width) + kStep - 1) / kStep * kStep;
}

// Number `column` of a token's words.
template <DType kType>
__device__ __forceinline__ float column_of(const float* words, int column) {
  constexpr int kNumbers = kType == DType::kFloat32 ? 1 : kType == DType::kBFloat16 ? 2 : 4;
  return number_of(kType, words[column / kNumbers], column % kNumbers);
}

// The products of one key with all rows. `k` is its first word; others are kTile apart.
template <DType kType, int kRows>
__device__ __forceinline__ void multiply_key(const float* k, int words, const float* q,
                                             int q_stride, float (&score)[kRows]) {
  constexpr int kNumbers = kType == DType::kFloat32 ? 1 : kType == DType::kBFloat16 ? 2 : 4;
  constexpr int kStep = step_of(kRows), kWords = kStep / kNumbers;
  for (; words > 0; words -= kWords, k += kWords * kTile, q += kStep) {
    float word[kWords];
#pragma unroll
    for (int u = 0; u < kWords; ++u) word[u] = u < words ? k[u * kTile] : 0.0f;
#pragma unroll
    for (int d = 0; d < kStep; d += 4)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(q + r * q_stride + d);
        const auto add = [&](float factor, int i) {
          score[r] = fmaf(factor, number_of(kType, word[i / kNumbers], i % kNumbers), score[r]);
        };
        add(x.x, d);
        add(x.y, d + 1);
        add(x.z, d + 2);
        add(x.w, d + 3);
      }
  }
}

// Grid: kv heads of all sequences, splits.
template <DType kType, int kRows>
__global__ __launch_bounds__(kThreads, 1) void decode_tiles(const AttentionForwardArgs args,
                                                            const Split split, bool round,
                                                            bool join) {
  take_turn();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const KvGroup group = kv_group(args, blockIdx.x);
  const int64_t rows = args.queries * group.group;
  const KeyRange together = seen_by(args, group, 0, rows);
  const int64_t first_tile = together.begin / kTile;
  const int64_t last_tile = (together.end + kTile - 1) / kTile - 1;
  // The blocks that have something to do; the first, where rows see nothing at all.
  const int64_t turn = blockIdx.y, none = first_tile > last_tile;
  const int64_t first_block = none ? 0 : first_tile / split.a_block;
  const int64_t last_block = none ? 0 : last_tile / split.a_block;
  if (turn < first_block || turn > last_block) return;
  const int64_t begin = max(turn * split.a_block, first_tile);
  const int64_t end = min((turn + 1) * split.a_block, last_tile + 1);
  const KvTiles &k = args.cache.k, &v = args.cache.v;
  const int q_stride = query_stride<kRows>(args.head_dim), words = static_cast<int>(v.words());
  float* values = dynamic_shared<float>();  // [kTile, words]
  float* q = values + kTile * words;        // [kRows, q_stride]
  float* weights = q + kRows * q_stride;    // [kRows, kTile]
  __shared__ const float* value_rows[kTile];
  __shared__ float most[kWarps][kRows];

  for (int d = thread; d < q_stride; d += kThreads) {
    float x[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows || d >= args.head_dim) continue;
      const int64_t i = group.query(r), h = group.head(r);
      x[r] = args.dtype == DType::kBFloat16 ? as_float(args.q.at<BFloat16>(group.b, i, h)[d])
                                            : args.q.at<float>(group.b, i, h)[d];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) q[r * q_stride + d] = rounded(x[r] * args.scale, round);
  }
  const int64_t length = keys_of(args, group.b);
  if (args.append) {  // a warp the keys, the other the values, of tokens that stand in these tiles
    const int64_t past = args.past ? args.past.as<int32_t>()[group.b] : 0;
    const HeadView& from = warp == 0 ? args.k : args.v;
    for (int64_t t = 0; t < args.queries && past + t < length; ++t) {
      const int64_t token = past + t, tile = token / kTile;
      if (tile < begin || tile >= end) continue;
      const int64_t row = args.cache.row(group.b, token);
      if (args.dtype == DType::kBFloat16)
        keep_token(warp == 0 ? k : v, from.at<BFloat16>(group.b, t, group.kv_head), row,
                   group.kv_head, token);
      else
        keep_token(warp == 0 ? k : v, from.at<float>(group.b, t, group.kv_head), row, group.kv_head,
                   token);
    }
  }
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t key = tile * kTile + thread;
    const int64_t row = key < length ? args.cache.row(group.b, key) : 0;
    value_rows[thread] = key < length ? v.tile(row, group.kv_head, key) + thread * words : nullptr;
    __syncthreads();
    const float* from[kAcross];
#pragma unroll
    for (int n = 0; n < kAcross; ++n) from[n] = value_rows[thread / kAcross + n * kAcross];
    for (int w = thread % kAcross * 4; w < words; w += kAcross * 4)
#pragma unroll
      for (int n = 0; n < kAcross; ++n)
        cp_async16(values + (thread / kAcross + n * kAcross) * words + w,
                   from[n] == nullptr ? v.data : from[n] + w, from[n] != nullptr);
    cp_async_commit();

    float score[kRows] = {}, highest[kRows];
    if (key < length) {
      const float* mine = k.tile(row, group.kv_head, key) + thread;
      multiply_key<kType>(mine, static_cast<int>(k.words()), q, q_stride, score);
      if (kType == DType::kInt8)
        for (int r = 0; r < kRows; ++r) score[r] *= mine[kTile * k.words()];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      KeyRange seen{0, 0};
      float slope;
      if (r < rows) seen = visible_keys(args, group.b, group.query(r));
      score[r] = finish_score(args, group, r, seen, key, score[r], slope);
      const float mine = warp_reduce(score[r], [](float a, float b) { return larger(a, b); });
      if (lane == 0) most[warp][r] = mine;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      highest[r] = larger(most[0][r], most[1][r]);
      weights[r * kTile + thread] = highest[r] == -INFINITY ? 0.0f : expf(score[r] - highest[r]);
    }
    __syncthreads();
    const int x = thread % kSide;
    float* partial = args.scratch.as<float>();
    const auto place = [&](int r) {
      return (row_index(args, group, r) * split.tiles + tile) * (args.value_dim + 2);
    };
    for (int first = 0; first < kRows; first += kThreads / kSide) {  // 16 threads a row
      const int r = first + thread / kSide;
      float sum = 0.0f;
      for (int n = 0; n < kTile; n += kSide) sum += r < kRows ? weights[r * kTile + x + n] : 0.0f;
      sum = across(sum, [](float a, float b) { return a + b; });
      if (x == 0 && r < kRows && r < rows) {
        partial[place(r)] = larger(most[0][r], most[1][r]);
        partial[place(r) + 1] = sum;
      }
    }
    __syncthreads();
    const float scale = kType == DType::kInt8 && key < length
                            ? v.tile(row, group.kv_head, key)[kTile * words + thread]
                            : 1.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float weight = weights[r * kTile + thread];
      if (args.dropout.p > 0.0f && weight != 0.0f)
        weight *= weight_factor(args, row_index(args, group, r), key);
      if (kType == DType::kInt8 && weight != 0.0f) weight *= scale;
      weights[r * kTile + thread] = rounded(weight, round);
    }
    cp_async_wait<0>();
    __syncthreads();
    for (int c = thread; c < args.value_dim; c += kThreads) {
      float sum[kRows] = {};
#pragma unroll 4
      for (int j = 0; j < kTile; ++j) {
        const float value = column_of<kType>(values + j * words, c);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float weight = weights[r * kTile + j];
          sum[r] = weight != 0.0f ? fmaf(weight, value, sum[r]) : sum[r];
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows) partial[place(r) + 2 + c] = sum[r];
    }
    __syncthreads();
  }

  if (!join) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    last = take_number(&ended[blockIdx.x]) == last_block - first_block;
    if (last) ended[blockIdx.x] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int64_t r = 0; r < rows; ++r) {
    if (args.dtype == DType::kBFloat16)
      join_row<BFloat16>(args, split, group.b, group.head(r), group.query(r));
    else
      join_row<float>(args, split, group.b, group.head(r), group.query(r));
  }
}

template <DType kType>
void run(const Context& context, const AttentionForwardArgs& args, const Split& split) {
  const int64_t rows = args.queries * (args.heads / args.kv_heads);
  const auto start = [&](auto count) {
    constexpr int kRows = count();
    const int64_t floats =
        kTile * args.cache.v.words() + kRows * (query_stride<kRows>(args.head_dim) + kTile);
    launch(context, decode_tiles<kType, kRows>,
           dim3(static_cast<unsigned>(args.batch * args.kv_heads),
                static_cast<unsigned>(blocks_of(split.tiles, split.a_block))),
           dim3(kThreads), static_cast<size_t>(floats) * sizeof(float), args, split,
           rounds(context, args), joins(args, split));
  };
  if (rows == 1)
    start(std::integral_constant<int, 1>{});
  else if (rows == 2)
    start(std::integral_constant<int, 2>{});
  else if (rows <= 4)
    start(std::integral_constant<int, 4>{});
  else
    start(std::integral_constant<int, kMostDecodeRows>{});
}

}  // namespace

bool attention_decode(const Context& context, const AttentionForwardArgs& args,
                      const Split& split) {
  switch (args.cache.k.dtype) {
    case DType::kBFloat16:
      run<DType::kBFloat16>(context, args, split);
      break;
    case DType::kInt8:
      run<DType::kInt8>(context, args, split);
      break;
    default:
      run<DType::kFloat32>(context, args, split);
  }
  return joins(args, split);
}

}  // namespace llmcore::cuda
