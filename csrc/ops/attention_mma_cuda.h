// Tiles of bfloat16 in shared memory, and their products on tensor cores, for attention.
//
// Blocks of 4 warps. A product's left side is 16 rows a warp, in registers; the fragments of a sum
// (cuda/ptx.h) are those of a left side once they are rounded, so that weights never leave the
// registers. Lane 4 g + t holds of each 8 columns the elements (g, 2 t), (g, 2 t + 1), (g + 8, 2 t)
// and (g + 8, 2 t + 1).
#pragma once

#include "cuda/ptx.h"
#include "ops/attention_cuda.h"

namespace llmcore::cuda {

inline constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * kWarp;
inline constexpr float kLog2E = 1.4426950408889634f;

// A tile [rows, kWidth], 16 bytes between rows: an odd number of 16 bytes a row, for ldmatrix.
template <int kWidth>
inline constexpr int kMmaStride = kWidth + 8;

struct Lane {
  int warp, g, t, lane;
  __device__ Lane() {
    lane = static_cast<int>(threadIdx.x) % kWarp;
    warp = static_cast<int>(threadIdx.x) / kWarp;
    g = lane / 4;
    t = lane % 4;
  }
};

// Blocks of one kv head follow one another, `blocks` of them, so that its tiles are found in the L2
// cache: which kv head a block has, and which part of it.
struct Place {
  int64_t group;
  int part;
  __device__ explicit Place(int blocks) {
    group = blockIdx.x / static_cast<unsigned>(blocks);
    part = static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks));
  }
};

// Tiles are copied 16 bytes at a time: a thread has the same columns of a row and of every
// kApart-th after it.
template <int kWidth>
inline constexpr int kChunks = kWidth / 8;
template <int kWidth>
inline constexpr int kApart = kMmaThreads / kChunks<kWidth>;
template <int kWidth>
__device__ __forceinline__ int first_copied() {
  return static_cast<int>(threadIdx.x) / kChunks<kWidth>;
}

// Begins to copy kRows rows of `width` elements, a multiple of 8; zeros from `count` rows on, and
// from `width` to kWidth. `from` is the thread's first row, next(from) the one after it.
template <int kWidth, int kRows, class Next>
__device__ __forceinline__ void copy_rows_async(const BFloat16* from, int64_t count, int64_t width,
                                                BFloat16* to, Next next) {
  const int first = first_copied<kWidth>();
  const int c = static_cast<int>(threadIdx.x) % kChunks<kWidth> * 8;
  const int left =
      c < width ? static_cast<int>(min(count, static_cast<int64_t>(kRows))) - first : 0;
  to += first * kMmaStride<kWidth> + c;
#pragma unroll
  for (int r = 0; r < kRows; r += kApart<kWidth>, from = next(from))
    cp_async16(to + r * kMmaStride<kWidth>, from + c, r < left);
}
// Keys or values from `first` on, of `length`: a tile.
template <int kWidth>
__device__ __forceinline__ void copy_keys_async(const HeadView& view, const KvGroup& group,
                                                int first, int64_t length, int64_t width,
                                                BFloat16* to) {
  const int64_t step = kApart<kWidth> * view.row_stride;
  copy_rows_async<kWidth, kTile>(
      view.at<BFloat16>(group.b, first + first_copied<kWidth>(), group.kv_head), length - first,
      width, to, [step](const BFloat16* from) { return from + step; });
}
// Rows of queries, or of what is theirs, from `row` on, of `rows`.
template <int kWidth, int kRows>
__device__ __forceinline__ void copy_queries_async(const HeadView& view, const KvGroup& group,
                                                   int64_t row, int64_t rows, int64_t width,
                                                   BFloat16* to) {
  const int heads = static_cast<int>(group.group), apart = kApart<kWidth> % heads;
  const int64_t first = row + first_copied<kWidth>();
  const int64_t step = kApart<kWidth> / heads * view.row_stride + apart * view.head_stride;
  const int64_t carry = view.row_stride - heads * view.head_stride;
  int head = static_cast<int>(group.head(first) - group.kv_head * heads);
  copy_rows_async<kWidth, kRows>(view.at<BFloat16>(group.b, group.query(first), group.head(first)),
                                 rows - row, width, to, [&](const BFloat16* from) {
                                   head += apart;
                                   const bool over = head >= heads;  // the next query
                                   head -= over ? heads : 0;
                                   return from + step + (over ? carry : 0);
                                 });
}

// Left side: rows [row, row + 16), columns [column, column + 16) of a tile.
template <int kWidth>
__device__ __forceinline__ void left_fragment(const BFloat16* tile, int row, int column,
                                              const Lane& lane, uint32_t (&a)[4]) {
  const int matrix = lane.lane / 8;
  ldmatrix_x4(a, tile + (row + matrix % 2 * 8 + lane.lane % 8) * kMmaStride<kWidth> + column +
                     matrix / 2 * 8);
}
// Right side, whose columns are rows of a tile: 16 of them from `row` on, and its 16 rows are the
// tile's columns. b[0], b[1] are of the first 8, b[2], b[3] of the others.
template <int kWidth>
__device__ __forceinline__ void right_rows(const BFloat16* tile, int row, int column,
                                           const Lane& lane, uint32_t (&b)[4]) {
  const int matrix = lane.lane / 8;
  ldmatrix_x4(b, tile + (row + matrix / 2 * 8 + lane.lane % 8) * kMmaStride<kWidth> + column +
                     matrix % 2 * 8);
}
// Right side as it stands in the tile.
template <int kWidth>
__device__ __forceinline__ void right_columns(const BFloat16* tile, int row, int column,
                                              const Lane& lane, uint32_t (&b)[4]) {
  const int matrix = lane.lane / 8;
  ldmatrix_x4_transposed(b, tile + (row + matrix % 2 * 8 + lane.lane % 8) * kMmaStride<kWidth> +
                                column + matrix / 2 * 8);
}
__device__ __forceinline__ void multiply_both(float (&first)[4], float (&second)[4],
                                              const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
  mma_bfloat16(first, a, left);
  mma_bfloat16(second, a, right);
}

// Sums of 16 columns as a left side.
__device__ __forceinline__ void as_left(const float (&first)[4], const float (&second)[4],
                                        uint32_t (&a)[4]) {
  a[0] = pack_bfloat16(first[0], first[1]);
  a[1] = pack_bfloat16(first[2], first[3]);
  a[2] = pack_bfloat16(second[0], second[1]);
  a[3] = pack_bfloat16(second[2], second[3]);
}

template <int kCount>
__device__ __forceinline__ void clear(float (&sums)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
}

// sums[n] = 16 rows of `left` . rows 8 n .. of `right`, over kWidth columns.
template <int kWidth, int kCount>
__device__ __forceinline__ void dots(const BFloat16* left, int row, const BFloat16* right,
                                     const Lane& lane, float (&sums)[kCount][4]) {
  clear(sums);
#pragma unroll
  for (int c = 0; c < kWidth; c += 16) {
    uint32_t a[4];
    left_fragment<kWidth>(left, row, c, lane, a);
#pragma unroll
    for (int n = 0; n < kCount; n += 2) {
      uint32_t b[4];
      right_rows<kWidth>(right, 8 * n, c, lane, b);
      multiply_both(sums[n], sums[n + 1], a, b);
    }
  }
}

// sums += weights (8 kCount columns) . rows of `right`.
template <int kWidth, int kCount>
__device__ __forceinline__ void add_products(const float (&weights)[kCount][4],
                                             const BFloat16* right, const Lane& lane,
                                             float (&sums)[kWidth / 8][4]) {
#pragma unroll
  for (int k = 0; k < kCount; k += 2) {
    uint32_t a[4];
    as_left(weights[k], weights[k + 1], a);
#pragma unroll
    for (int n = 0; n < kWidth / 8; n += 2) {
      uint32_t b[4];
      right_columns<kWidth>(right, 8 * k, 8 * n, lane, b);
      multiply_both(sums[n], sums[n + 1], a, b);
    }
  }
}

// Rows g and g + 8 of sums times `factor`, to where `row(half)` says, if it does.
template <int kWidth, class Row>
__device__ __forceinline__ void leave_sums(const float (&sums)[kWidth / 8][4], Row row,
                                           int64_t width, const Lane& lane,
                                           const float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    BFloat16* to = row(half);
    if (to == nullptr) continue;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
      if (8 * n < width)  // a multiple of 8
        *reinterpret_cast<uint32_t*>(to + 8 * n + 2 * lane.t) =
            pack_bfloat16(sums[n][2 * half] * factor[half], sums[n][2 * half + 1] * factor[half]);
  }
}

// Bit i says whether dropout keeps element(i), of so many; kPairs: bits 2 i and 2 i + 1, whether it
// keeps that and the next. Not unrolled: there are as many as a lane has scores.
template <int kCount, bool kPairs, class Element>
__device__ __forceinline__ uint32_t kept_bits(const Dropout& dropout, Element element) {
  const uint32_t threshold = dropout_threshold(dropout.p);
  const uint64_t stream = stream_of(dropout);
  uint32_t bits = 0;
  const auto word = [](const Philox4& words, uint32_t i) {
    return i < 2 ? (i == 0 ? words.lane[0] : words.lane[1])
                 : (i == 2 ? words.lane[2] : words.lane[3]);
  };
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) {
    const uint64_t at = static_cast<uint64_t>(element(i));
    Philox4 words = philox(dropout.seed, stream, at / 4);
    bits |= (word(words, at % 4) >= threshold ? 1u : 0u) << (kPairs ? 2 * i : i);
    if (!kPairs) continue;
    if (at % 4 == 3) words = philox(dropout.seed, stream, at / 4 + 1);
    bits |= (word(words, (at + 1) % 4) >= threshold ? 2u : 0u) << (2 * i);
  }
  return bits;
}

__device__ __forceinline__ float kept_factor(const Dropout& dropout, uint32_t bits, int i) {
  return bits >> i & 1u ? 1.0f / (1.0f - dropout.p) : 0.0f;
}

// Over the 4 lanes that share a row.
template <class Combine>
__device__ __forceinline__ float across_row(float x, Combine combine) {
  x = combine(x, __shfl_xor_sync(kAllLanes, x, 1));
  return combine(x, __shfl_xor_sync(kAllLanes, x, 2));
}

// What tensor cores take: rows of bfloat16 that begin at whole 16 bytes, in all these views.
template <class... Views>
bool fits_tensor_cores(const AttentionArgs& args, const Views&... views) {
  const auto whole = [](const HeadView& view) {
    return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.batch_stride % 8 == 0 &&
           view.row_stride % 8 == 0 && view.head_stride % 8 == 0;
  };
  return args.dtype == DType::kBFloat16 && args.cache.k.data == nullptr && args.head_dim <= 128 &&
         args.value_dim <= 128 && args.head_dim % 8 == 0 && args.value_dim % 8 == 0 &&
         args.keys < (1 << 30) && whole(args.q) && whole(args.k) && whole(args.v) &&
         (whole(views) && ...);
}
// Whether scores are more than scaled products of what is seen.
inline bool has_extras(const AttentionArgs& args) {
  return args.softcap > 0.0f || args.bias.data != nullptr || args.mask.data != nullptr ||
         args.dropout.p > 0.0f || args.scale <= 0.0f;
}

void attention_forward_mma(const Context& context, const AttentionForwardArgs& args);
// dk and dv; dq of so many kv heads (attention_backward_cuda.cu says what `scores` are).
void backward_keys_mma(const Context& context, const AttentionBackwardArgs& args);
void backward_queries_mma(const Context& context, const AttentionBackwardArgs& args,
                          int64_t first_group, int64_t groups, float* scores);

}  // namespace llmcore::cuda
