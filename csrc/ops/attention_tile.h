// What attention's forward and backward kernels share: tiles of keys, small products, scores.
//
// Included by ops/attention*_cpu.cpp alone. Keys are cut into tiles of kTileKeys at fixed places.
// A sum over a tile, or over the head's width, is one chain of multiply-adds (or of dot products of
// pairs, the first at an even place) in ascending order, and tiles are added in ascending order.
// What a query does not see is left out, or enters as an exact zero: so a query's bits do not
// depend on the queries it shares a tile with.
#pragma once

#include "ops/attention.h"
#include "simd/dot.h"
#include "simd/loop.h"
#include "simd/math.h"
#include "simd/philox.h"
#include "simd/transpose.h"

namespace llmcore::LLMCORE_ISA {

// The backward half of the family's table, in attention_backward_cpu.cpp.
int64_t attention_backward_scratch(const AttentionArgs& args);
void attention_backward_kernel(const Context& context, const AttentionBackwardArgs& args);

namespace {

#define LLMCORE_NOINLINE inline __attribute__((noinline))

constexpr int64_t kTileKeys = kTileTokens;
// A product holds this many rows and vectors of its result in registers.
constexpr int64_t kGroupRows = 6;
constexpr int64_t kPanelVecs = kVecRegisters == 32 ? 4 : 2;

constexpr float kInfinity = __builtin_inff();

LLMCORE_INLINE int64_t padded(int64_t width) {
  return ceil_div(width, kLanes) * kLanes;
}

// Hands out 64-byte aligned pieces of one thread's scratch, or counts them where there is none.
struct Pieces {
  float* base = nullptr;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* piece = base + used;
    used += ceil_div(floats, 16) * 16;
    return piece;
  }
};

// The query rows that share a kv head: row r is query r / group, head kv_head * group + r % group.
// In this order neither end of the run of keys that a row sees ever moves back.
struct KvHead {
  int64_t b, kv_head, group;
};

// One of those rows, and the keys it sees.
struct QueryRow {
  int64_t query, head;
  KeyRange seen;
};

// Rows first .. first + count - 1 of a kv head.
LLMCORE_INLINE void find_rows(const AttentionArgs& args, const KvHead& head, int64_t first,
                              int64_t count, QueryRow* rows) {
  int64_t query = first / head.group, member = first % head.group;
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = {query, head.kv_head * head.group + member, visible_keys(args, head.b, query)};
    if (++member == head.group) {
      member = 0;
      ++query;
    }
  }
}

// The keys that consecutive rows see together.
LLMCORE_INLINE KeyRange seen_together(const QueryRow* rows, int64_t count) {
  return {rows[0].seen.begin, rows[count - 1].seen.end};
}

// ---- What products multiply ----

// An operand is made of words: a float each, or two bfloat16 that follow one another along k. Where
// k runs along rows, a word has numbers of one row; where a step of k is a row, of kNumbers rows.
struct Floats {
  static constexpr int kNumbers = 1;
  // The words of the first numbers of a row, times a factor; zeros behind the `count`-th.
  LLMCORE_INLINE static Vec along_row(const float* from, int64_t count, float factor) {
    return load_up_to(from, count) * factor;
  }
  // Words of the same columns of rows that follow one another.
  LLMCORE_INLINE static Vec across_rows(Vec first, Vec) { return first; }
  LLMCORE_INLINE static Vec repeat(const float* word) { return broadcast(*word); }
  LLMCORE_INLINE static Vec add_product(Vec sum, Vec x, Vec y) { return fma(x, y, sum); }
  // y, but zeros where it meets a zero of x.
  LLMCORE_INLINE static Vec met(Vec x, Vec y) { return select(x != 0.0f, y, Vec{}); }
};

struct Pairs {
  static constexpr int kNumbers = 2;
  LLMCORE_INLINE static Vec along_row(const float* from, int64_t count, float factor) {
    const Vec first = Floats::along_row(from, count, factor);
    if (count <= kLanes) return as_floats(bfloat16_pairs(first, Vec{}));
    return as_floats(
        bfloat16_pairs(first, Floats::along_row(from + kLanes, count - kLanes, factor)));
  }
  LLMCORE_INLINE static Vec across_rows(Vec first, Vec second) {
    return as_floats(bfloat16_zip(first, second));
  }
  LLMCORE_INLINE static VecU repeat(const float* word) {
    uint32_t bits;
    __builtin_memcpy(&bits, word, sizeof(bits));
    return bits - VecU{};
  }
  LLMCORE_INLINE static Vec add_product(Vec sum, VecU x, Vec y) {
    return dot_bfloat16(sum, bfloat16_lanes(as_bits(y)), bfloat16_lanes(x));
  }
  LLMCORE_INLINE static Vec met(VecU x, Vec y) {
    const VecU low = (x & 0x7fffu) != 0u ? VecU{} + 0xffffu : VecU{};
    const VecU high = (x & 0x7fff0000u) != 0u ? VecU{} + 0xffff0000u : VecU{};
    return as_floats(as_bits(y) & (low | high));
  }
};

// The same where a zero on the left takes nothing from the right, not even a NaN or an infinity.
template <class Operands>
struct ZerosTakeNothing : Operands {
  template <class Left>
  LLMCORE_INLINE static Vec add_product(Vec sum, Left x, Vec y) {
    return Operands::add_product(sum, x, Operands::met(x, y));
  }
};

template <class Words>
LLMCORE_INLINE int64_t words_of(int64_t numbers) {
  return ceil_div(numbers, Words::kNumbers);
}

// ---- Copying between the callers' strided rows and dense tiles, padded to whole vectors ----

template <class Words>
LLMCORE_INLINE void read_row(const float* from, int64_t width, float factor, float* to) {
  constexpr int64_t kStep = Words::kNumbers * kLanes;
  for (int64_t c = 0; c < width; c += kStep, to += kLanes)
    store(to, Words::along_row(from + c, width - c, factor));
}

// to[r / kNumbers][c] = column c of `count` rows, row(r) is where one is.
template <class Words, class Row>
LLMCORE_INLINE void read_rows(Row row, int64_t count, int64_t width, float factor, float* to) {
  for (int64_t r = 0; r < count; r += Words::kNumbers)
    for (int64_t c = 0; c < width; c += kLanes, to += kLanes) {
      const auto read = [&](int64_t i) { return load_up_to(row(i) + c, width - c) * factor; };
      const bool more = Words::kNumbers > 1 && r + 1 < count;
      store(to, Words::across_rows(read(r), more ? read(r + 1) : Vec{}));
    }
}

LLMCORE_INLINE void write_row(const float* from, int64_t width, float factor, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) store(to + c, load(from + c) * factor);
  if (c < width) store_partial(to + c, load(from + c) * factor, width - c);
}

LLMCORE_INLINE void zero(float* to, int64_t count) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) store(to + c, Vec{});
  for (; c < count; ++c) to[c] = 0.0f;
}

using AllLanes = LaneRange<kLanes>::Type;

// All lanes combined by halving, in every lane.
template <int kHalf, class Combine, int... kLane>
LLMCORE_INLINE Vec combine_lanes(Vec v, Combine combine, LaneList<kLane...> lanes) {
  v = combine(v, __builtin_shufflevector(v, v, (kLane ^ kHalf)...));
  if constexpr (kHalf > 1) v = combine_lanes<kHalf / 2>(v, combine, lanes);
  return v;
}
LLMCORE_INLINE Vec largest_lane(Vec v) {
  return combine_lanes<kLanes / 2>(
      v, [](Vec a, Vec b) { return max(a, b); }, AllLanes{});
}
LLMCORE_INLINE Vec sum_of_lanes(Vec v) {
  return combine_lanes<kLanes / 2>(
      v, [](Vec a, Vec b) { return a + b; }, AllLanes{});
}

// to[w * kTileKeys + i] = word w of row i of kLanes; read(i, c) gives a vector of its words, from
// column c on.
template <class Words, class Read>
LLMCORE_INLINE void read_transposed(int64_t width, Read read, float* to) {
  constexpr int64_t kStep = Words::kNumbers * kLanes;
  for (int64_t c = 0; c < width; c += kStep, to += kLanes * kTileKeys) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = read(i, c);
    transpose(rows);
    if (width - c >= kStep) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(to + i * kTileKeys, rows[i]);
    } else {
      for (int64_t i = 0; i < words_of<Words>(width - c); ++i) store(to + i * kTileKeys, rows[i]);
    }
  }
}

// A tile [words, kTileKeys] of `count` rows, zeros beyond them.
template <class Words>
LLMCORE_NOINLINE void read_tile_transposed(const float* from, int64_t row_stride, int64_t count,
                                           int64_t width, float* to) {
  for (int64_t j = 0; j < kTileKeys; j += kLanes)
    read_transposed<Words>(
        width,
        [&](int64_t i, int64_t c) {
          return j + i >= count
                     ? Vec{}
                     : Words::along_row(from + (j + i) * row_stride + c, width - c, 1.0f);
        },
        to + j);
}

// ---- The small matrix product all of attention is made of ----

// C[r][n] (+)= sum over k of a[r * a_row + k * a_k] * b[k * b_row + n]; C's row stride is c_row,
// and n runs over `vecs` vectors. Both are words, and k counts those of a. The sum is one chain in
// ascending k that starts from zero, so that long sums over tiles are sums of short ones.
struct Product {
  int64_t rows, vecs, depth;
  const float* a;
  int64_t a_row, a_k;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool accumulate;
  bool half = false;  // the last word's second number is none of b's
};

// The right side: words as they are. Others (kv_tiles_simd.h) are of elements that are not words,
// which b_row counts then, and a row of them has the columns of kSteps steps of k; or it is two
// rows, the second of which read() is given too.
template <class Operands>
struct Plain {
  using Words = Operands;
  using Element = float;
  static constexpr int kSteps = 1;
  LLMCORE_INLINE static Vec read(const float* from, const float*, int) { return load(from); }
};

template <class Columns, int kRows, int kVecs>
void multiply_block(const Product& p, int64_t row, int64_t vec) {
  using Words = typename Columns::Words;
  using Element = typename Columns::Element;
  static constexpr Element kNone[kVecs * kLanes] = {};
  const float* a = p.a + row * p.a_row;
  const auto* b = reinterpret_cast<const Element*>(p.b) + vec * kLanes;
  float* c = p.c + row * p.c_row + vec * kLanes;
  const int64_t a_row = p.a_row, a_k = p.a_k, b_row = p.b_row, c_row = p.c_row;
  Vec sum[kRows][kVecs] = {};
  for (int64_t k = p.depth; k > 0; k -= Columns::kSteps, b += b_row) {
    const Element* second = p.half && k == 1 ? kNone : b + b_row / 2;
#pragma GCC unroll 4
    for (int i = 0; i < Columns::kSteps; ++i, a += a_k) {
      Vec y[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) y[v] = Columns::read(b + v * kLanes, second + v * kLanes, i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto x = Words::repeat(a + r * a_row);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sum[r][v] = Words::add_product(sum[r][v], x, y[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* to = c + r * c_row + v * kLanes;
      store(to, p.accumulate ? load(to) + sum[r][v] : sum[r][v]);
    }
}

template <class Columns, int kVecs>
LLMCORE_INLINE void multiply_rows(const Product& p, int64_t row, int64_t vec) {
  switch (min(kGroupRows, p.rows - row)) {
    case 6:
      return multiply_block<Columns, 6, kVecs>(p, row, vec);
    case 5:
      return multiply_block<Columns, 5, kVecs>(p, row, vec);
    case 4:
      return multiply_block<Columns, 4, kVecs>(p, row, vec);
    case 3:
      return multiply_block<Columns, 3, kVecs>(p, row, vec);
    case 2:
      return multiply_block<Columns, 2, kVecs>(p, row, vec);
    default:
      return multiply_block<Columns, 1, kVecs>(p, row, vec);
  }
}

template <class Columns>
LLMCORE_NOINLINE void multiply(const Product& p) {
  for (int64_t vec = 0; vec < p.vecs; vec += kPanelVecs) {
    const int64_t vecs = min(kPanelVecs, p.vecs - vec);
    for (int64_t row = 0; row < p.rows; row += kGroupRows) {
      if (kPanelVecs >= 4 && vecs == 4)
        multiply_rows<Columns, kPanelVecs>(p, row, vec);
      else if (kPanelVecs >= 4 && vecs == 3)
        multiply_rows<Columns, 3>(p, row, vec);
      else if (vecs == 2)
        multiply_rows<Columns, 2>(p, row, vec);
      else
        multiply_rows<Columns, 1>(p, row, vec);
    }
  }
}

// Weights, or gradients of scores, times rows. `careful`: what weighs nothing is not looked at.
// Numbers give the same bits either way. It costs a quarter more, so it is for who met a NaN.
template <class Words>
LLMCORE_INLINE void multiply_weights(const Product& p, bool careful) {
  if (careful) return multiply<Plain<ZerosTakeNothing<Words>>>(p);
  multiply<Plain<Words>>(p);
}

// Whether there is a NaN in whole vectors.
LLMCORE_NOINLINE bool has_nan(const float* x, int64_t count) {
  VecI found{};
  for (int64_t c = 0; c < count; c += kLanes) found |= load(x + c) != load(x + c);
  return largest_lane(select(found, broadcast(1.0f), Vec{}))[0] > 0.0f;
}

// ---- From products to scores ----

// What of `range` lies in the tile of keys from `first` on, counted from there.
LLMCORE_INLINE KeyRange clip_to_tile(KeyRange range, int64_t first) {
  const int64_t end = min(max(range.end - first, 0), kTileKeys);
  return {min(max(range.begin - first, 0), end), end};
}

LLMCORE_INLINE bool is_empty(KeyRange range) {
  return range.begin >= range.end;
}

// One query row against the tile of keys [first, first + kTileKeys), of which it sees the run
// `seen` (mask aside), counted from `first`.
struct ScoreRow {
  int64_t b, head, query, first;
  KeyRange seen;
};
LLMCORE_INLINE ScoreRow score_row(const KvHead& head, const QueryRow& row, int64_t first) {
  return {head.b, row.head, row.query, first, clip_to_tile(row.seen, first)};
}

// The vectors of a tile that a group of rows looks at.
struct VecRange {
  int64_t begin, end;
};
LLMCORE_INLINE VecRange vectors_of(KeyRange seen) {
  return {seen.begin / kLanes, ceil_div(seen.end, kLanes)};
}

template <class T, class Read>
LLMCORE_INLINE Vec read_scores(const ScoreView& view, const AttentionArgs& args,
                               const ScoreRow& row, int64_t column, Read read) {
  const int64_t key = row.first + column;
  const T* at = static_cast<const T*>(view.data) + row.b * view.stride[0] +
                row.head * view.stride[1] + row.query * view.stride[2] + key * view.stride[3];
  const int64_t count = min(kLanes, args.keys - key);
  Vec values{};
  for (int64_t i = 0; i < count; ++i) values[i] = read(at[i * view.stride[3]]);
  return values;
}

LLMCORE_INLINE Vec read_bias(const AttentionArgs& args, const ScoreRow& row, int64_t column) {
  const ScoreView& view = args.bias;
  if (view.stride[3] == 1 && row.first + column + kLanes <= args.keys)
    return load(static_cast<const float*>(view.data) + row.b * view.stride[0] +
                row.head * view.stride[1] + row.query * view.stride[2] + row.first + column);
  return read_scores<float>(view, args, row, column, [](float x) { return x; });
}

LLMCORE_INLINE VecI lane_numbers() {
  VecI lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Turns products scale q . k into scores, -inf where the key is hidden, in the given vectors.
// `slope`, if given, receives the derivative of the softcap.
LLMCORE_NOINLINE void finish_scores(const AttentionArgs& args, const ScoreRow& row, VecRange vecs,
                                    float* scores, float* slope) {
  const Vec hidden = broadcast(-kInfinity);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    const int64_t column = v * kLanes;
    Vec score = load(scores + column);
    if (args.softcap > 0.0f) {
      const Vec capped = tanh(score * (1.0f / args.softcap));
      if (slope != nullptr) store(slope + column, 1.0f - capped * capped);
      score = capped * args.softcap;
    }
    if (args.bias.data != nullptr) score += read_bias(args, row, column);
    if (args.mask.data != nullptr) {
      const Vec may =
          read_scores<bool>(args.mask, args, row, column, [](bool x) { return x ? 1.0f : 0.0f; });
      score = select(may != 0.0f, score, hidden);
    }
    const VecI key = lane_numbers() + static_cast<int32_t>(column);
    const VecI inside =
        (key >= static_cast<int32_t>(row.seen.begin)) & (key < static_cast<int32_t>(row.seen.end));
    store(scores + column, select(inside, score, hidden));
  }
}

// Whether the products are the scores already.
LLMCORE_INLINE bool are_scores(const AttentionArgs& args, const ScoreRow& row, VecRange vecs) {
  return args.softcap == 0.0f && args.bias.data == nullptr && args.mask.data == nullptr &&
         row.seen.begin <= vecs.begin * kLanes && row.seen.end >= vecs.end * kLanes;
}

// What stands in these vectors of rows of kTileKeys as words along the row, from its beginning on.
template <class Words>
LLMCORE_INLINE void to_words(VecRange vecs, int64_t rows, float* x) {
  if constexpr (Words::kNumbers == 1) return;
  constexpr int kNumbers = Words::kNumbers;
  for (int64_t i = 0; i < rows; ++i, x += kTileKeys)
    for (int64_t w = vecs.begin / kNumbers; w * kNumbers < vecs.end; ++w)
      store(x + w * kLanes, Words::along_row(x + w * kNumbers * kLanes, kNumbers * kLanes, 1.0f));
}

// What dropout multiplies the row's weights by, 0 or 1 / (1 - p), for the whole tile.
LLMCORE_NOINLINE void dropout_factors(const AttentionArgs& args, const ScoreRow& row,
                                      float* factors) {
  const uint64_t element = static_cast<uint64_t>(
      ((row.b * args.heads + row.head) * args.queries + row.query) * args.keys + row.first);
  const uint64_t start = element / 4 * 4;
  const uint32_t threshold = dropout_threshold(args.dropout.p);
  const Vec keep = broadcast(1.0f / (1.0f - args.dropout.p));
  float aligned[kTileKeys + kLanes];
  for (int64_t c = 0; c < kTileKeys + kLanes; c += kLanes) {
    const VecU words = philox_words(args.dropout.seed, args.dropout.stream, start + c);
    store(aligned + c, select(words >= threshold, keep, Vec{}));
  }
  __builtin_memcpy(factors, aligned + (element - start), kTileKeys * sizeof(float));
}

}  // namespace
}  // namespace llmcore::LLMCORE_ISA
