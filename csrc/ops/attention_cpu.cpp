// Attention's forward pass on the CPU: blocks of query rows against tiles of keys, online softmax
// (Milakov and Gimelshein 2018; Dao et al. 2022).
#include "core/parallel.h"
#include "ops/kv_tiles_simd.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Query rows of a kv head that pass a tile of keys together: the tile is packed once for all of
// them.
constexpr int64_t kBlockRows = 96;

// A block of query rows of one kv head, in one thread's scratch.
struct Block {
  KvHead head;
  int64_t count;
  QueryRow rows[kBlockRows];
  int64_t value_width;  // padded Dv
  float* q;             // [kBlockRows, padded words of D], scaled
  float* keys;         // [words of D, kTileKeys], or a tile of a cache put together of several rows
  float* kept_values;  // a tile likewise
  float* values;       // [words of kTileKeys, padded Dv]
  float* scores;       // [kGroupRows, kTileKeys]
  float* states;       // [kBlockRows, padded Dv + kLanes]
  float* highest;      // [kBlockRows] the highest score so far

  // The running sums of row r: exp(score - highest) v, then, lane by lane, exp(score - highest).
  float* state(int64_t r) const { return states + r * (value_width + kLanes); }
};

void place(const AttentionArgs& args, Pieces& pieces, Block& block) {
  block.value_width = padded(args.value_dim);
  block.q = pieces.take(kBlockRows * padded(args.head_dim));
  block.keys = pieces.take(max(args.head_dim * kTileKeys, args.cache.k.tile_words()));
  block.kept_values = pieces.take(args.cache.v.tile_words());
  block.values = pieces.take(kTileKeys * block.value_width);
  block.scores = pieces.take(kGroupRows * kTileKeys);
  block.states = pieces.take(kBlockRows * (block.value_width + kLanes));
  block.highest = pieces.take(kBlockRows);
}

int64_t scratch_floats(const AttentionArgs& args) {
  Pieces count;
  Block block;
  place(args, count, block);
  return count.used;
}

int64_t forward_scratch(const AttentionArgs& args) {
  return num_threads() * scratch_floats(args) * static_cast<int64_t>(sizeof(float));
}

// On its own, so that no compiler fuses the product with a sum after it.
LLMCORE_NOINLINE void rescale(float* state, int64_t count, float factor) {
  for (int64_t c = 0; c < count; c += kLanes) store(state + c, load(state + c) * factor);
}

// A group's scores join the rows' running softmax: they become exp(score - highest), and a row's
// running sums are rescaled if its highest rose. A tile that shows a row nothing changes nothing.
template <int kVecs>
void softmax_vecs(const Block& block, int64_t first_row, int64_t rows, float* scores) {
  for (int64_t r = first_row; r < first_row + rows; ++r, scores += kTileKeys) {
    float* total = block.state(r) + block.value_width;
    const float before = block.highest[r];
    Vec score[kVecs], most = broadcast(before);
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      score[v] = load(scores + v * kLanes);
      most = max(most, score[v]);
    }
    most = largest_lane(most);
    const float now = most[0];
    if (now == -kInfinity) {
      zero(scores, kVecs * kLanes);
      continue;
    }
    block.highest[r] = now;
    if (now != before && before != -kInfinity)
      rescale(block.state(r), block.value_width + kLanes, exp(broadcast(before - now))[0]);
    Vec sum = load(total);
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const Vec weight = exp(score[v] - most);
      store(scores + v * kLanes, weight);
      sum += weight;
    }
    store(total, sum);
  }
}

template <int kVecs = kTileKeys / kLanes>
LLMCORE_INLINE void softmax_step(const Block& block, int64_t r, int64_t rows, VecRange vecs) {
  if constexpr (kVecs > 1)
    if (vecs.end - vecs.begin < kVecs) return softmax_step<kVecs - 1>(block, r, rows, vecs);
  softmax_vecs<kVecs>(block, r, rows, block.scores + vecs.begin * kLanes);
}

// The tile of the cache that begins with key `first`: where it is if the `count` keys from there on
// stand in one row, else put together in `gathered`.
float* kept_tile(const AttentionArgs& args, const KvTiles& tiles, const KvHead& head, int64_t first,
                 int64_t count, float* gathered) {
  const int64_t row = args.cache.row(head.b, first);
  bool together = true;
  for (int64_t j = 1; j < count; ++j) together &= args.cache.row(head.b, first + j) == row;
  if (together) return tiles.tile(row, head.kv_head, first);
  float* tiles_of[kTileKeys];
  for (int64_t j = 0; j < count; ++j)
    tiles_of[j] = tiles.tile(args.cache.row(head.b, first + j), head.kv_head, first);
  gather_tile(tiles, tiles_of, count, gathered);
  return gathered;
}

// The `count` keys from `first` on: [words of D, kTileKeys], or a tile of the cache.
template <class Words>
const float* key_tile(const AttentionArgs& args, const Block& block, int64_t first, int64_t count) {
  const KvHead& head = block.head;
  if (args.cache.k.data != nullptr)
    return kept_tile(args, args.cache.k, head, first, count, block.keys);
  read_tile_transposed<Words>(args.k.at(head.b, first, head.kv_head), args.k.row_stride, count,
                              args.head_dim, block.keys);
  return block.keys;
}

// The `count` values from `first` on, each in whole vectors, or a tile of the cache.
struct ValueRows {
  const float* from;
  int64_t stride;       // in words, between words of tokens
  bool tokens = false;  // of bfloat16, no words of pairs of them yet
};
template <class Words>
ValueRows value_tile(const AttentionArgs& args, const Block& block, int64_t first, int64_t count) {
  const KvHead& head = block.head;
  const KvTiles& kept = args.cache.v;
  const bool once = block.count <= kGroupRows;  // what is read once does not pay for packing
  if (kept.data != nullptr) {
    const float* tile = kept_tile(args, kept, head, first, count, block.kept_values);
    if (Words::kNumbers == 1) return {tile, kept.words()};
    if (once) return {tile, Words::kNumbers * kept.words(), true};
    pair_tokens(kept, tile, count, block.values);
    return {block.values, block.value_width};
  }
  const ValueRows rows{args.v.at(head.b, first, head.kv_head), args.v.row_stride};
  if (Words::kNumbers == 1 && once && args.value_dim % kLanes == 0) return rows;
  read_rows<Words>([&](int64_t j) { return rows.from + j * rows.stride; }, count, args.value_dim,
                   1.0f, block.values);
  return {block.values, block.value_width};
}

// Takes the block's rows through all keys they see: enter(first, count) for a tile, then for each
// group of rows that sees something in it, once its scores stand in the block, use(first, r, rows,
// seen). The scores are -inf where one of the rows does not see what another does.
template <class Words, class Enter, class Use>
LLMCORE_INLINE void scan(const AttentionArgs& args, Block& block, Enter enter, Use use) {
  const int64_t depth = words_of<Words>(args.head_dim), width = padded(depth);
  for (int64_t r = 0; r < block.count; ++r) {
    const QueryRow& row = block.rows[r];
    read_row<Words>(args.q.at(block.head.b, row.query, row.head), args.head_dim, args.scale,
                    block.q + r * width);
    block.highest[r] = -kInfinity;
    zero(block.state(r), block.value_width + kLanes);
  }
  const KeyRange all = seen_together(block.rows, block.count);
  for (int64_t first = all.begin / kTileKeys * kTileKeys; first < all.end; first += kTileKeys) {
    const int64_t count = min(kTileKeys, all.end - first);
    const float* keys = key_tile<Words>(args, block, first, count);
    enter(first, count);
    for (int64_t r = 0; r < block.count; r += kGroupRows) {
      const int64_t rows = min(kGroupRows, block.count - r);
      const KeyRange seen = clip_to_tile(seen_together(block.rows + r, rows), first);
      if (is_empty(seen)) continue;
      const VecRange vecs = vectors_of(seen);
      multiply_kept<Words>(args.cache.k, {.rows = rows,
                                          .vecs = vecs.end - vecs.begin,
                                          .depth = depth,
                                          .a = block.q + r * width,
                                          .a_row = width,
                                          .a_k = 1,
                                          .b = keys + vecs.begin * kLanes,
                                          .b_row = kTileKeys,
                                          .c = block.scores + vecs.begin * kLanes,
                                          .c_row = kTileKeys,
                                          .accumulate = false});
      apply_scales(args.cache.k, keys, vecs, rows, block.scores);
      for (int64_t i = 0; i < rows; ++i) {
        const ScoreRow row = score_row(block.head, block.rows[r + i], first);
        if (!are_scores(args, row, vecs))
          finish_scores(args, row, vecs, block.scores + i * kTileKeys, nullptr);
      }
      use(first, r, rows, seen);
    }
  }
}

void drop_weights(const AttentionArgs& args, const Block& block, int64_t first, int64_t r,
                  int64_t rows, VecRange vecs) {
  float factors[kTileKeys];
  for (int64_t i = 0; i < rows; ++i) {
    dropout_factors(args, score_row(block.head, block.rows[r + i], first), factors);
    float* weights = block.scores + i * kTileKeys;
    for (int64_t v = vecs.begin; v < vecs.end; ++v)
      store(weights + v * kLanes, load(weights + v * kLanes) * load(factors + v * kLanes));
  }
}

template <class Words>
void forward_block(const AttentionForwardArgs& args, Block& block, bool careful) {
  ValueRows values{};
  const auto enter = [&](int64_t first, int64_t count) {
    values = value_tile<Words>(args, block, first, count);
  };
  const auto use = [&](int64_t first, int64_t r, int64_t rows, KeyRange seen) {
    softmax_step(block, r, rows, vectors_of(seen));
    if (args.dropout.p > 0.0f) drop_weights(args, block, first, r, rows, vectors_of(seen));
    apply_scales(args.cache.v, values.from, vectors_of(seen), rows, block.scores);
    to_words<Words>(vectors_of(seen), rows, block.scores);
    const int64_t begin = seen.begin / Words::kNumbers;
    Product product{.rows = rows,
                    .vecs = block.value_width / kLanes,
                    .depth = words_of<Words>(seen.end) - begin,
                    .a = block.scores + begin,
                    .a_row = kTileKeys,
                    .a_k = 1,
                    .b = values.from + begin * values.stride,
                    .b_row = values.stride,
                    .c = block.state(r),
                    .c_row = block.value_width + kLanes,
                    .accumulate = true};
    if (careful) return multiply_weights<Words>(product, careful);
    if (!values.tokens) return multiply_kept<Words>(args.cache.v, product);
    product.b_row *= Words::kNumbers;
    product.half = seen.end % 2 != 0;
    multiply<BFloat16Values>(product);
  };
  scan<Words>(args, block, enter, use);

  // A zero times a NaN is one: it may be of a key that a row does not see.
  if (!careful && args.cache.v.data == nullptr &&
      has_nan(block.states, block.count * (block.value_width + kLanes)))
    return forward_block<Words>(args, block, true);
  for (int64_t r = 0; r < block.count; ++r) {
    const QueryRow& row = block.rows[r];
    const bool saw_something = block.highest[r] != -kInfinity;
    const float total = sum_of_lanes(load(block.state(r) + block.value_width))[0];
    write_row(block.state(r), args.value_dim, saw_something ? 1.0f / total : 0.0f,
              args.out.at(block.head.b, row.query, row.head));
    if (args.softmax == nullptr) continue;
    float* saved =
        args.softmax + 2 * ((block.head.b * args.heads + row.head) * args.queries + row.query);
    saved[0] = block.highest[r];
    saved[1] = saw_something ? log(total) : 0.0f;
  }
}

template <class Words>
void weights_block(const AttentionWeightsArgs& args, Block& block) {
  const auto out = [&](int64_t r) {
    const QueryRow& row = block.rows[r];
    return args.weights +
           ((block.head.b * args.heads + row.head) * args.queries + row.query) * args.keys;
  };
  for (int64_t r = 0; r < block.count; ++r)
    for (int64_t j = 0; j < args.keys; ++j) out(r)[j] = -kInfinity;
  // The scores first, then what the running softmax came to.
  const auto use = [&](int64_t first, int64_t r, int64_t rows, KeyRange seen) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = seen.begin; j < seen.end; ++j)
        out(r + i)[first + j] = block.scores[i * kTileKeys + j];
    softmax_step(block, r, rows, vectors_of(seen));
  };
  scan<Words>(
      args, block, [](int64_t, int64_t) {}, use);
  for (int64_t r = 0; r < block.count; ++r) {
    float* to = out(r);
    const Vec total = sum_of_lanes(load(block.state(r) + block.value_width));
    const bool saw_something = block.highest[r] != -kInfinity;
    for (int64_t j = 0; j < args.keys; j += kLanes) {
      const int64_t count = min(kLanes, args.keys - j);
      const Vec weight = exp(load_partial(to + j, count) - block.highest[r]) / total;
      store_partial(to + j, saw_something ? weight : Vec{}, count);
    }
  }
}

// body(args, block) for every block of every kv head, those that see most first.
template <class Args, class Body>
LLMCORE_INLINE void for_each_block(const Args& args, Body body) {
  const int64_t group = args.heads / args.kv_heads, rows = args.queries * group;
  const int64_t blocks = ceil_div(rows, kBlockRows), floats = scratch_floats(args);
  parallel_for(args.batch * args.kv_heads * blocks, [&](int64_t task, int worker) {
    const int64_t head = task / blocks, first = (blocks - 1 - task % blocks) * kBlockRows;
    Pieces pieces{args.scratch.template as<float>() + worker * floats};
    Block block;
    block.head = {head / args.kv_heads, head % args.kv_heads, group};
    block.count = min(kBlockRows, rows - first);
    find_rows(args, block.head, first, block.count, block.rows);
    place(args, pieces, block);
    body(args, block);
  });
}

// Whether products round their operands.
bool rounds(const Context& context, const AttentionArgs& args) {
  return args.cache.k.data != nullptr ? args.cache.k.dtype == DType::kBFloat16 : context.bfloat16;
}

void forward(const Context& context, const AttentionForwardArgs& args) {
  const auto take = rounds(context, args) ? forward_block<Pairs> : forward_block<Floats>;
  for_each_block(
      args, [take](const AttentionForwardArgs& all, Block& block) { take(all, block, false); });
}
void weights(const Context& context, const AttentionWeightsArgs& args) {
  for_each_block(args, rounds(context, args) ? weights_block<Pairs> : weights_block<Floats>);
}

void append(const Context&, const AttentionAppendArgs& args) {
  const KvTiles &k = args.cache.k, &v = args.cache.v;
  // Split as forward is, so that a thread writes what it will read.
  parallel_for(args.batch * k.heads, [&](int64_t task, int) {
    const int64_t b = task / k.heads, head = task % k.heads;
    const int64_t past = args.past ? args.past.as<int32_t>()[b] : 0;
    const int64_t end = min(args.tokens, args.kv_lengths.as<int32_t>()[b] - past);
    for (int64_t t = 0, count; t < end; t += count) {  // those that go to one tile
      const int64_t token = past + t, row = args.cache.row(b, token);
      count = 1;
      while (t + count < end && (token + count) % kTileTokens != 0 &&
             args.cache.row(b, token + count) == row)
        ++count;
      const auto keep = [&](const KvTiles& tiles, const HeadView& from) {
        with_format(tiles.dtype, [&](auto format) {
          keep_tokens<decltype(format)>(tiles, from.at(b, t, head), from.row_stride, count,
                                        tiles.tile(row, head, token), token % kTileTokens);
        });
      };
      keep(k, args.k);
      keep(v, args.v);
    }
  });
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {
    .forward_scratch = forward_scratch,
    .backward_scratch = attention_backward_scratch,
    .forward = forward,
    .backward = attention_backward_kernel,
    .weights = weights,
    .append = append,
};

}  // namespace llmcore::LLMCORE_ISA
