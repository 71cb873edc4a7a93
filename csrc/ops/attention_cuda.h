// What attention's CUDA kernels share: tiles of rows in shared memory, their products, and scores.
//
// Blocks of 16 x 16 threads. In a product of tiles thread (y, x) has rows y, y + 16, … of the left
// and rows x, x + 16, … of the right; where columns of a tile are summed it has 4 columns of every
// 64, from 4 x on. All sums are chains in ascending order, whichever kernel takes them.
#pragma once

#include "cuda/floats.h"
#include "cuda/launch.h"
#include "cuda/philox.h"
#include "cuda/reduce.h"
#include "ops/attention.h"

namespace llmcore::cuda {

inline constexpr int kSide = 16, kBlockThreads = kSide * kSide;
inline constexpr int kTile = static_cast<int>(kTileTokens);  // keys a forward step
inline constexpr int kScoreStride = kTile + 4;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Between rows of `width` floats in shared memory: whole float4s, an odd number of them, so that
// equal columns of 8 rows lie in different banks.
LLMCORE_INLINE int row_stride(int64_t width) {
  return static_cast<int>(((width + 3) / 4) | 1) * 4;
}

// Query rows of one kv head are numbered by query, then by head. Below 2^32: to divide longer
// numbers takes a GPU longer than what a row is read for.
struct KvGroup {
  int64_t b, kv_head, group;
  __device__ int64_t query(int64_t row) const {
    return group == 1 ? row : static_cast<uint32_t>(row) / static_cast<uint32_t>(group);
  }
  __device__ int64_t head(int64_t row) const { return kv_head * group + row - query(row) * group; }
};
__device__ __forceinline__ KvGroup kv_group(const AttentionArgs& args, int64_t index) {
  return {index / args.kv_heads, index % args.kv_heads, args.heads / args.kv_heads};
}
// Its place in [B, H, T].
__device__ __forceinline__ int64_t row_index(const AttentionArgs& args, const KvGroup& group,
                                             int64_t row) {
  return (group.b * args.heads + group.head(row)) * args.queries + group.query(row);
}
// What rows [first, end) see together, or more: neither end of what a query sees falls as it rises.
__device__ __forceinline__ KeyRange seen_by(const AttentionArgs& args, const KvGroup& group,
                                            int64_t first, int64_t end) {
  return {visible_keys(args, group.b, group.query(first)).begin,
          visible_keys(args, group.b, group.query(end - 1)).end};
}
// Keys from here on are never read.
__device__ __forceinline__ int64_t keys_of(const AttentionArgs& args, int64_t b) {
  return args.kv_lengths ? args.kv_lengths.as<int32_t>()[b] : args.keys;
}

__device__ __forceinline__ float rounded(float x, bool round) {
  return round ? to_float(from_float<BFloat16>(x)) : x;
}

// The larger; a NaN if there is one.
__device__ __forceinline__ float larger(float a, float b) {
  return a > b || a != a ? a : b;
}

// ---- Tiles ----

__device__ __forceinline__ float4 load_four(const float* p, int64_t count) {
  if (count >= 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0)
    return *reinterpret_cast<const float4*>(p);
  return make_float4(p[0], count > 1 ? p[1] : 0.0f, count > 2 ? p[2] : 0.0f,
                     count > 3 ? p[3] : 0.0f);
}
__device__ __forceinline__ float4 load_four(const BFloat16* p, int64_t count) {
  if (count >= 4 && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
  }
  return make_float4(as_float(p[0]), count > 1 ? as_float(p[1]) : 0.0f,
                     count > 2 ? as_float(p[2]) : 0.0f, count > 3 ? as_float(p[3]) : 0.0f);
}

// to[r][c] = factor * row(r)[c] for `rows` rows of `width`; zeros from `count` rows on.
template <class Row>
__device__ __forceinline__ void enter_rows(Row row, int rows, int64_t count, int64_t width,
                                           float factor, bool round, float* to) {
  const int fours = static_cast<int>((width + 3) / 4), stride = row_stride(width);
  for (int e = static_cast<int>(threadIdx.x); e < rows * fours; e += kBlockThreads) {
    const int r = e / fours, c = e % fours * 4;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (r < count) x = load_four(row(r) + c, width - c);
    *reinterpret_cast<float4*>(to + r * stride + c) =
        make_float4(rounded(x.x * factor, round), rounded(x.y * factor, round),
                    rounded(x.z * factor, round), rounded(x.w * factor, round));
  }
}

// Number i of a word of a cache.
__device__ __forceinline__ float number_of(DType dtype, float word, int i) {
  const uint32_t bits = __float_as_uint(word);
  if (dtype == DType::kBFloat16) return __uint_as_float(i == 0 ? bits << 16 : bits & 0xffff0000u);
  if (dtype == DType::kInt8)
    return static_cast<float>(static_cast<int8_t>(bits >> (8 * i) & 0xffu));
  return word;
}
// What the numbers of token `key` are to be multiplied by.
__device__ __forceinline__ float scale_of(const KvCacheView& cache, const KvTiles& tiles, int64_t b,
                                          int64_t kv_head, int64_t key) {
  if (tiles.dtype != DType::kInt8) return 1.0f;
  return tiles.tile(cache.row(b, key), kv_head, key)[kTile * tiles.words() + key % kTile];
}

// A token's numbers of one kv head, by a warp: rounded as kv_tiles.h says.
template <class T>
__device__ __forceinline__ void keep_token(const KvTiles& tiles, const T* from, int64_t row,
                                           int64_t head, int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, width = static_cast<int>(tiles.width);
  float* tile = tiles.tile(row, head, token);
  const int64_t j = token % kTile, words = tiles.words();
  float inverse = 1.0f;
  if (tiles.dtype == DType::kInt8) {
    uint32_t largest = 0;  // magnitudes as integers: NaN is above infinity, that above all others
    for (int c = lane; c < width; c += kWarp)
      largest = max(largest, __float_as_uint(as_float(from[c])) & 0x7fffffffu);
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      largest = max(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    const float most = __uint_as_float(largest);
    inverse = most > 0.0f ? 127.0f / most : 0.0f;
    if (lane == 0) tile[kTile * words + j] = most / 127.0f + (most - most);
  }
  for (int w = lane; w < words; w += kWarp) {
    const auto number = [&](int c) { return c < width ? as_float(from[c]) : 0.0f; };
    uint32_t word = 0;
    if (tiles.dtype == DType::kFloat32) {
      word = __float_as_uint(number(w));
    } else if (tiles.dtype == DType::kBFloat16) {
      word = pack_bfloat16(number(2 * w), number(2 * w + 1));
    } else {
      constexpr float kRounder = 0x1.8p23f;  // to the nearest integer, which the lowest bits hold
      for (int i = 0; i < 4; ++i) {
        const float sum = fmaf(number(4 * w + i), inverse, kRounder);
        word |= (__float_as_uint(sum) & 0xffu) << (8 * i);
      }
    }
    tile[tiles.transposed ? w * kTile + j : j * words + w] = __uint_as_float(word);
  }
}

// The same as enter_rows for the keys or values from `first` on that a cache keeps, scales aside.
__device__ __forceinline__ void enter_kept(const KvCacheView& cache, const KvTiles& tiles,
                                           const KvGroup& group, int64_t first, int64_t count,
                                           float* to) {
  const int numbers = 4 / static_cast<int>(dtype_size(tiles.dtype));
  const int width = static_cast<int>(tiles.width), stride = row_stride(width);
  const int used = (width + numbers - 1) / numbers, padded = (width + 3) / 4 * 4;
  for (int e = static_cast<int>(threadIdx.x); e < kTile * used; e += kBlockThreads) {
    const int j = tiles.transposed ? e % kTile : e / used;
    const int w = tiles.transposed ? e / kTile : e % used;
    float word = 0.0f;
    if (j < count) {
      const float* tile = tiles.tile(cache.row(group.b, first + j), group.kv_head, first + j);
      word = tile[tiles.transposed ? w * kTile + j : j * tiles.words() + w];
    }
    for (int i = 0; i < numbers; ++i)
      to[j * stride + w * numbers + i] =
          w * numbers + i < width ? number_of(tiles.dtype, word, i) : 0.0f;
  }
  for (int e = static_cast<int>(threadIdx.x); e < kTile * (padded - width); e += kBlockThreads)
    to[e / (padded - width) * stride + width + e % (padded - width)] = 0.0f;
}

// ---- Products ----

// sum[m][n] += a row y + 16 m . b row x + 16 n
template <int kM, int kN>
__device__ __forceinline__ void add_dots(const float* a, const float* b, int64_t width,
                                         float (&sum)[kM][kN]) {
  const int stride = row_stride(width), depth = static_cast<int>(width);
  a += static_cast<int>(threadIdx.x) / kSide * stride;
  b += static_cast<int>(threadIdx.x) % kSide * stride;
#pragma unroll 2
  for (int d = 0; d < depth; d += 4) {
    float4 x[kM], y[kN];
#pragma unroll
    for (int m = 0; m < kM; ++m)
      x[m] = *reinterpret_cast<const float4*>(a + m * kSide * stride + d);
#pragma unroll
    for (int n = 0; n < kN; ++n)
      y[n] = *reinterpret_cast<const float4*>(b + n * kSide * stride + d);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        sum[m][n] = fmaf(x[m].x, y[n].x, sum[m][n]);
        sum[m][n] = fmaf(x[m].y, y[n].y, sum[m][n]);
        sum[m][n] = fmaf(x[m].z, y[n].z, sum[m][n]);
        sum[m][n] = fmaf(x[m].w, y[n].w, sum[m][n]);
      }
  }
}

// acc[m][4 n + i] += weight * x[step][64 n + 4 x + i], of a row m of the thread in each step; what
// weighs nothing is not looked at.
template <int kM, int kColumns, class Weight>
__device__ __forceinline__ void add_weighted(Weight weight, const float* x, int64_t width,
                                             int steps, float (&acc)[kM][4 * kColumns]) {
  const int stride = row_stride(width);
  const int first = static_cast<int>(threadIdx.x) % kSide * 4;
#pragma unroll 4
  for (int step = 0; step < steps; ++step) {
    float w[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) w[m] = weight(m, step);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (first + 64 * n >= width) continue;
      const float4 v = *reinterpret_cast<const float4*>(x + step * stride + first + 64 * n);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (w[m] == 0.0f) continue;
        acc[m][4 * n] = fmaf(w[m], v.x, acc[m][4 * n]);
        acc[m][4 * n + 1] = fmaf(w[m], v.y, acc[m][4 * n + 1]);
        acc[m][4 * n + 2] = fmaf(w[m], v.z, acc[m][4 * n + 2]);
        acc[m][4 * n + 3] = fmaf(w[m], v.w, acc[m][4 * n + 3]);
      }
    }
  }
}

// to[64 n + 4 x + i] = factor * acc[4 n + i]
template <class T, int kColumns>
__device__ __forceinline__ void leave_row(const float (&acc)[4 * kColumns], float factor,
                                          int64_t width, T* to) {
  const int first = static_cast<int>(threadIdx.x) % kSide * 4;
#pragma unroll
  for (int n = 0; n < kColumns; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + 64 * n + i < width)
        to[first + 64 * n + i] = from_float<T>(acc[4 * n + i] * factor);
}

// Over the 16 threads that share a row y.
template <class Combine>
__device__ __forceinline__ float across(float x, Combine combine) {
#pragma unroll
  for (int distance = kSide / 2; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

// ---- Scores ----

// From scale q . k to the score, -inf where the key is hidden; `slope` is that of the softcap.
__device__ __forceinline__ float finish_score(const AttentionArgs& args, const KvGroup& group,
                                              int64_t row, KeyRange seen, int64_t key, float score,
                                              float& slope) {
  slope = 1.0f;
  if (key < seen.begin || key >= seen.end) return -INFINITY;
  if (args.softcap > 0.0f) {
    const float capped = tanhf(score * (1.0f / args.softcap));
    slope = fmaf(-capped, capped, 1.0f);
    score = capped * args.softcap;
  }
  const auto place = [&](const ScoreView& view) {
    return group.b * view.stride[0] + group.head(row) * view.stride[1] +
           group.query(row) * view.stride[2] + key * view.stride[3];
  };
  if (args.bias.data != nullptr)
    score += static_cast<const float*>(args.bias.data)[place(args.bias)];
  if (args.mask.data != nullptr && !static_cast<const bool*>(args.mask.data)[place(args.mask)])
    return -INFINITY;
  return score;
}

// What dropout multiplies the weight of a row of [B, H, T] by.
__device__ __forceinline__ float weight_factor(const AttentionArgs& args, int64_t row,
                                               int64_t key) {
  return dropout_factor(args.dropout, static_cast<uint64_t>(row * args.keys + key));
}

// The running softmax of a row: what a tile adds is what it says relative to its own highest score,
// so that it makes no difference who took the tile's sums. `kept` and `added` are what the sums so
// far and the tile's are to be multiplied by.
struct Softmax {
  float highest = -INFINITY, sum = 0.0f;
  struct Factors {
    float kept, added;
  };
  __device__ __forceinline__ Factors add(float tile_highest, float tile_sum) {
    if (tile_highest == -INFINITY) return {1.0f, 0.0f};
    const float now = larger(highest, tile_highest);
    const Factors factors{highest == -INFINITY ? 0.0f : expf(highest - now),
                          expf(tile_highest - now)};
    sum = fmaf(sum, factors.kept, tile_sum * factors.added);
    highest = now;
    return factors;
  }
  // What the sums of weighted values are to be multiplied by.
  __device__ __forceinline__ float share() const {
    return highest == -INFINITY ? 0.0f : 1.0f / sum;
  }
};

// How tiles go to blocks. Partial sums of each tile go to the scratch, [B, H, T, tiles]: the
// highest score, the sum of exponentials and the weighted values [Dv].
struct Split {
  int64_t tiles, a_block;
  bool partial;
};

__device__ __forceinline__ void leave_softmax(const AttentionForwardArgs& args, int64_t row,
                                              const Softmax& softmax) {
  if (args.softmax == nullptr) return;
  args.softmax[2 * row] = softmax.highest;
  args.softmax[2 * row + 1] = softmax.highest == -INFINITY ? 0.0f : logf(softmax.sum);
}

// Joins the partial sums of a row's tiles, in their order; by all threads of a block, past a cache
// of its own, since other blocks may have left them just now.
template <class T>
__device__ __forceinline__ void join_row(const AttentionForwardArgs& args, const Split& split,
                                         int64_t b, int64_t h, int64_t i) {
  constexpr int kAhead = 8;  // tiles whose sums are read together: reads past the cache wait long
  const KeyRange seen = visible_keys(args, b, i);
  const int64_t begin = seen.begin / kTile, end = (seen.end + kTile - 1) / kTile;
  const int64_t row = (b * args.heads + h) * args.queries + i, stride = args.value_dim + 2;
  const float* from = args.scratch.as<float>() + row * split.tiles * stride;
  for (int64_t c = threadIdx.x; c < args.value_dim; c += blockDim.x) {
    Softmax softmax;
    float total = 0.0f;
    for (int64_t first = begin; first < end; first += kAhead) {
      float highest[kAhead], sum[kAhead], value[kAhead];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const float* part = from + min(first + n, end - 1) * stride;
        highest[n] = __ldcg(part);
        sum[n] = __ldcg(part + 1);
        value[n] = __ldcg(part + 2 + c);
      }
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (first + n >= end) break;
        const Softmax::Factors factors = softmax.add(highest[n], sum[n]);
        total = fmaf(total, factors.kept, value[n] * factors.added);
      }
    }
    args.out.template at<T>(b, i, h)[c] = from_float<T>(total * softmax.share());
    if (c == 0) leave_softmax(args, row, softmax);
  }
}

// launch(std::integral_constant) with how many times 64 columns hold `width`.
template <class Visit>
void with_columns(int64_t width, Visit visit) {
  CHECK(width <= 256, ConfigError, "attention on a GPU takes head widths up to 256, got ", width);
  if (width <= 64)
    visit(std::integral_constant<int, 1>{});
  else if (width <= 128)
    visit(std::integral_constant<int, 2>{});
  else
    visit(std::integral_constant<int, 4>{});
}

// Whether products round their operands.
inline bool rounds(const Context& context, const AttentionArgs& args) {
  return args.cache.k.data != nullptr ? args.cache.k.dtype == DType::kBFloat16 : context.bfloat16;
}

// Partial sums over a cache, of at most so many query rows a kv head. Returns whether they are
// joined as well.
inline constexpr int kMostDecodeRows = 8;
bool attention_decode(const Context& context, const AttentionForwardArgs& args, const Split& split);

// What backward's scratch begins with, for each row of [B, H, T]: its highest score, infinity where
// it saw nothing, as all weights are then exp(-inf); the log of its sum; dout . out. On tensor
// cores the first two are in powers of 2.
struct alignas(16) RowFacts {
  float highest, log_sum, delta, unused;
};
int64_t attention_backward_scratch(const AttentionArgs& args);
void attention_backward(const Context& context, const AttentionBackwardArgs& args);

}  // namespace llmcore::cuda
