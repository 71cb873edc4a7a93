// Scaled dot-product attention (Vaswani et al. 2017), tiled with online softmax: no [T, S] matrix.
//
//   out_i = sum_j softmax_j(score_ij) v_j,   score_ij = softcap(scale q_i . k_j) + bias_ij
//   softcap(s) = cap tanh(s / cap) where cap > 0
//
// Who sees whom is decided here and nowhere else. Query i of sequence b stands at position
// p = i + past[b]; key j is visible to it iff
//   j < kv_lengths[b]
//   and (not causal, or j <= p, or j < prefix_lengths[b])
//   and (window_left < 0, or j >= p - window_left) and (window_right < 0, or j <= p + window_right)
//   and mask_bij, where a mask is given.
// A query that sees nothing gives zeros.
//
// Products round their operands to bfloat16 where the context says so, or a cache is of bfloat16:
// queries, keys and values, weights and the gradients of scores. Sums and the softmax stay float.
//
// Bit for bit, output row i of sequence b depends on that sequence's queries, keys and positions
// alone: not on which other queries are computed with it, so that one decoded token equals the same
// token in a longer pass; not on batch neighbours or threads; not on keys hidden from it, NaNs
// neither (but in a cache, and on tensor cores): what weighs nothing adds nothing. Keys from
// kv_lengths on are never read.
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "ops/kv_tiles.h"

namespace llmcore {

// Element (b, t, h, d) is at data[b * batch_stride + t * row_stride + h * head_stride + d], so that
// q, k and v can be read from one packed [N, (H + 2 Hkv) D] matrix or from [B, H, T, D].
struct HeadView {
  void* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
  template <class T = float>
  LLMCORE_INLINE T* at(int64_t b, int64_t t, int64_t h) const {
    return static_cast<T*>(data) + b * batch_stride + t * row_stride + h * head_stride;
  }
};

// Element (b, h, i, j) of something broadcastable to [B, H, T, S]; strides of broadcast axes are 0.
// What depends on j - i alone has strides -1 and 1 for i and j: queries then share elements.
struct ScoreView {
  void* data = nullptr;
  int64_t stride[4] = {};
};

// Keys and values kept in tiles: key j of sequence b stands in row
// rows[b * rows_stride[0] + j * rows_stride[1]], so that sequences can share what they share.
struct KvCacheView {
  KvTiles k, v;  // no data: there is no cache
  Tensor rows;   // int32
  int64_t rows_stride[2] = {};
  LLMCORE_INLINE int64_t row(int64_t b, int64_t j) const {
    return rows.as<int32_t>()[b * rows_stride[0] + j * rows_stride[1]];
  }
};

struct AttentionArgs {
  int64_t batch = 0, queries = 0, keys = 0;  // B, T, S
  int64_t heads = 0, kv_heads = 0;           // H, a multiple of Hkv
  int64_t head_dim = 0, value_dim = 0;       // D of q and k, D of v and out
  DType dtype = DType::kFloat32;             // of q, k, v and out, and of their gradients
  HeadView q, k, v;                          // [B, T, H, D], [B, S, Hkv, D], [B, S, Hkv, Dv]
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  bool causal = false;
  int64_t window_left = -1, window_right = -1;  // -1: unbounded
  Tensor kv_lengths;                            // [B] int32; empty: S
  Tensor prefix_lengths;                        // [B] int32; empty: 0
  Tensor past;                                  // [B] int32; empty: 0
  KvCacheView cache;                            // read instead of k and v; for forward alone
  ScoreView bias;                               // float, additive
  ScoreView mask;                               // bool, true: may attend
  Dropout dropout;  // on the weights: element ((b * H + h) * T + i) * S + j
};

// The keys query i of sequence b may see, mask aside: always one run, [begin, end).
struct KeyRange {
  int64_t begin, end;
};
LLMCORE_INLINE KeyRange visible_keys(const AttentionArgs& args, int64_t b, int64_t i) {
  const auto smaller = [](int64_t x, int64_t y) { return x < y ? x : y; };
  const auto larger = [](int64_t x, int64_t y) { return x > y ? x : y; };
  const auto given = [b](const Tensor& values, int64_t otherwise) {
    return values ? int64_t{values.as<int32_t>()[b]} : otherwise;
  };
  const int64_t position = i + given(args.past, 0);
  KeyRange range{0, given(args.kv_lengths, args.keys)};
  if (args.causal) {
    const int64_t prefix = given(args.prefix_lengths, 0);
    range.end = smaller(range.end, larger(position + 1, prefix));
  }
  if (args.window_left >= 0) range.begin = larger(0, position - args.window_left);
  if (args.window_right >= 0) range.end = smaller(range.end, position + args.window_right + 1);
  range.begin = smaller(range.begin, range.end);
  return range;
}

struct AttentionForwardArgs : AttentionArgs {
  // k and v [B, T, …] are of new tokens, which go into the cache first: attention_append().
  bool append = false;
  bool apart = false;  // no sequence sees what another appends
  HeadView out;        // [B, T, H, Dv]
  // [B, H, T, 2] the highest score of a query and the log of the sum of exponentials of all scores
  // less it, saved for backward, or null; -inf first for a query that sees nothing. Their sum would
  // do, but where scores are large it rounds away what tells weights apart.
  float* softmax = nullptr;
  Tensor scratch;  // provided by the checking layer
};

struct AttentionBackwardArgs : AttentionArgs {
  HeadView out, dout;              // [B, T, H, Dv]
  const float* softmax = nullptr;  // [B, H, T, 2]
  HeadView dq, dk, dv;             // overwritten; keys nobody sees get zeros
  ScoreView dbias;                 // accumulates over shared elements; no data: not wanted
  Tensor scratch;                  // provided by the checking layer
};

// The softmax weights themselves, before dropout, for callers that want to look at them. v is
// unused.
struct AttentionWeightsArgs : AttentionArgs {
  float* weights = nullptr;  // [B, H, T, S]
  Tensor scratch;            // provided by the checking layer
};

// Adds the keys and values of new tokens to a cache: those of token t of sequence b as key past[b]
// + t, if that is below kv_lengths[b].
struct AttentionAppendArgs {
  int64_t batch = 0, tokens = 0;  // B, T
  HeadView k, v;                  // [B, T, Hkv, D], [B, T, Hkv, Dv]
  Tensor kv_lengths;              // [B] int32
  Tensor past;                    // [B] int32; empty: 0
  KvCacheView cache;
};

struct AttentionKernels {
  int64_t (*forward_scratch)(const AttentionArgs&);   // bytes, for the weights too
  int64_t (*backward_scratch)(const AttentionArgs&);  // bytes
  void (*forward)(const Context&, const AttentionForwardArgs&);
  void (*backward)(const Context&, const AttentionBackwardArgs&);
  void (*weights)(const Context&, const AttentionWeightsArgs&);
  void (*append)(const Context&, const AttentionAppendArgs&);
  // Whether forward itself appends for sequences that are apart; null: it never does.
  bool (*appends)(const AttentionArgs&);
};

void attention_forward(const Context& context, const AttentionForwardArgs& args);
void attention_backward(const Context& context, const AttentionBackwardArgs& args);
void attention_weights(const Context& context, const AttentionWeightsArgs& args);
void attention_append(const Context& context, const AttentionAppendArgs& args);

}  // namespace llmcore
