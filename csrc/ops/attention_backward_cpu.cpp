// Attention's backward pass on the CPU: the weights come again from the scores, the saved highest
// of them and the saved log of their sum (Dao et al. 2022).
//
//   P = exp((score - highest) - log_sum), O = (P K) V with dropout factors K
//   dV = (P K)^T dO,  dP = K (dO V^T),  dS = P (dP - delta),  delta = rowsum(dO O)
//   dQ = scale slope dS K,  dK = scale (slope dS)^T Q,  slope: derivative of the softcap
#include "core/parallel.h"
#include "ops/attention_tile.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Query rows of a kv head that meet a tile of keys together, and tiles they meet one after the
// other while they are at hand.
constexpr int64_t kBlockRows = 48;
constexpr int64_t kTilesTogether = 4;

// A tile of keys, in scratch once a row sees it.
struct Tile {
  int64_t first, count;  // its keys
  bool entered;
  float* keys;               // [words of kTileKeys, padded D], scaled
  float *keys_t, *values_t;  // [words of D, kTileKeys], [words of Dv, kTileKeys]
  float *dk, *dv;            // [kTileKeys, padded D], [kTileKeys, padded Dv]
};

// What a thread works on: a block of query rows and tiles of keys.
struct Workspace {
  int64_t width, value_width;  // padded D and Dv
  float *q, *dout;             // [kBlockRows, padded words of D or Dv], q scaled
  float* dq;                   // [kBlockRows, width]
  float *weights, *dscores;    // [kBlockRows, kTileKeys]
  // The same where rows are steps of k: [words of kBlockRows, width, value_width or kTileKeys].
  float *q_steps, *dout_steps, *weight_steps, *dscore_steps;
  QueryRow rows[kBlockRows];
  Tile tiles[kTilesTogether];
  bool careful = false;  // multiply_weights()
};

template <class Words>
void place(const AttentionArgs& args, Pieces& pieces, Workspace& work) {
  work.width = padded(args.head_dim);
  work.value_width = padded(args.value_dim);
  work.q = pieces.take(kBlockRows * work.width);
  work.dout = pieces.take(kBlockRows * work.value_width);
  work.dq = pieces.take(kBlockRows * work.width);
  work.weights = pieces.take(kBlockRows * kTileKeys);
  work.dscores = pieces.take(kBlockRows * kTileKeys);
  const auto steps = [&](float* rows, int64_t width) {
    return Words::kNumbers == 1 ? rows : pieces.take(words_of<Words>(kBlockRows) * width);
  };
  work.q_steps = steps(work.q, work.width);
  work.dout_steps = steps(work.dout, work.value_width);
  work.weight_steps = steps(work.weights, kTileKeys);
  work.dscore_steps = steps(work.dscores, kTileKeys);
  for (Tile& tile : work.tiles) {
    tile.keys = pieces.take(kTileKeys * work.width);
    tile.keys_t = pieces.take(args.head_dim * kTileKeys);
    tile.values_t = pieces.take(args.value_dim * kTileKeys);
    tile.dk = pieces.take(kTileKeys * work.width);
    tile.dv = pieces.take(kTileKeys * work.value_width);
  }
}

int64_t floats_per_thread(const AttentionArgs& args) {
  Pieces count;
  Workspace work;
  place<Pairs>(args, count, work);  // which take more
  return count.used;
}

int64_t row_floats(const AttentionArgs& args) {
  return ceil_div(args.batch * args.heads * args.queries, 16) * 16;
}

// Which gradients a task produces. Each is summed in the same order whichever task does it.
struct Wanted {
  bool dq, dkv, dbias;
};

// Tiles of keys and rows of queries of one kv head.
struct Part {
  KvHead head;
  int64_t first_key, end_key;
  int64_t first_row, end_row;
};

// From the row's products q . k (in `weights`) and dout . v (in `dscores`) to what their names say,
// in place, in the given vectors; zeros where the row does not see. The slope of the softcap is in
// dscores if `with_slope`: dq and dk want it, dbias does not.
LLMCORE_NOINLINE void row_backward(const AttentionBackwardArgs& args, const ScoreRow& row,
                                   VecRange vecs, const float* softmax, float delta,
                                   bool with_slope, float* weights, float* dscores) {
  float slope[kTileKeys], factors[kTileKeys];
  if (!are_scores(args, row, vecs)) finish_scores(args, row, vecs, weights, slope);
  const bool drop = args.dropout.p > 0.0f;
  if (drop) dropout_factors(args, row, factors);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    float *weight = weights + v * kLanes, *dscore = dscores + v * kLanes;
    const Vec score = load(weight);
    const Vec p = select(score == -kInfinity, Vec{}, exp((score - softmax[0]) - softmax[1]));
    Vec dp = load(dscore);
    Vec kept = p;
    if (drop) {
      kept = p * load(factors + v * kLanes);
      dp *= load(factors + v * kLanes);
    }
    Vec gradient = p * (dp - delta);
    if (with_slope && args.softcap > 0.0f) gradient *= load(slope + v * kLanes);
    store(weight, kept);
    store(dscore, Floats::met(p, gradient));
  }
}

template <class Words>
void enter_tile(const AttentionBackwardArgs& args, const KvHead& head, const Wanted& wanted,
                Tile& tile) {
  if (tile.entered) return;
  tile.entered = true;
  const int64_t length = args.kv_lengths ? args.kv_lengths.as<int32_t>()[head.b] : args.keys;
  const int64_t count = min(tile.count, length - tile.first);
  const float* k = args.k.at(head.b, tile.first, head.kv_head);
  const float* v = args.v.at(head.b, tile.first, head.kv_head);
  read_tile_transposed<Words>(k, args.k.row_stride, count, args.head_dim, tile.keys_t);
  read_tile_transposed<Words>(v, args.v.row_stride, count, args.value_dim, tile.values_t);
  if (!wanted.dq) return;
  read_rows<Words>([&](int64_t j) { return k + j * args.k.row_stride; }, count, args.head_dim,
                   args.scale, tile.keys);
}

// What group_backward has put into weights and dscores of rows [r, r + rows) as words.
template <class Words>
void group_to_words(int64_t r, int64_t rows, const Workspace& work) {
  if constexpr (Words::kNumbers == 1) return;
  const auto across = [&](const float* from, float* to) {
    read_rows<Words>([&](int64_t i) { return from + (r + i) * kTileKeys; }, rows, kTileKeys, 1.0f,
                     to + r / Words::kNumbers * kTileKeys);
  };
  across(work.weights, work.weight_steps);
  across(work.dscores, work.dscore_steps);
  to_words<Words>({0, kTileKeys / kLanes}, rows, work.dscores + r * kTileKeys);
}

// Rows [r, r + rows) of the block: their weights and score gradients, and their share of dq.
template <class Words>
void group_backward(const AttentionBackwardArgs& args, const Part& part, const float* delta,
                    int64_t r, int64_t rows, const Tile& tile, const Wanted& wanted,
                    Workspace& work) {
  const KeyRange all = clip_to_tile(seen_together(work.rows + r, rows), tile.first);
  float* weights = work.weights + r * kTileKeys;
  float* dscores = work.dscores + r * kTileKeys;
  // What the group does not look at weighs zero for the keys' sums over all rows.
  if (is_empty(all) || all.end - all.begin < kTileKeys) {
    zero(weights, rows * kTileKeys);
    zero(dscores, rows * kTileKeys);
  }
  if (is_empty(all)) return group_to_words<Words>(r, rows, work);
  const VecRange vecs = vectors_of(all);
  const int64_t begin = vecs.begin * kLanes;
  Product product{.rows = rows,
                  .vecs = vecs.end - vecs.begin,
                  .depth = words_of<Words>(args.head_dim),
                  .a = work.q + r * padded(words_of<Words>(args.head_dim)),
                  .a_row = padded(words_of<Words>(args.head_dim)),
                  .a_k = 1,
                  .b = tile.keys_t + begin,
                  .b_row = kTileKeys,
                  .c = weights + begin,
                  .c_row = kTileKeys,
                  .accumulate = false};
  multiply<Plain<Words>>(product);
  product.depth = words_of<Words>(args.value_dim);
  product.a_row = padded(product.depth);
  product.a = work.dout + r * product.a_row;
  product.b = tile.values_t + begin;
  product.c = dscores + begin;
  multiply<Plain<Words>>(product);
  for (int64_t i = 0; i < rows; ++i) {
    const ScoreRow row = score_row(part.head, work.rows[r + i], tile.first);
    const int64_t index = (row.b * args.heads + row.head) * args.queries + row.query;
    row_backward(args, row, vecs, args.softmax + 2 * index, delta[index], !wanted.dbias,
                 weights + i * kTileKeys, dscores + i * kTileKeys);
  }
  if (wanted.dbias) return;  // it is a sum of floats
  group_to_words<Words>(r, rows, work);
  if (!wanted.dq) return;
  const int64_t first = all.begin / Words::kNumbers;
  product = {.rows = rows,
             .vecs = work.width / kLanes,
             .depth = words_of<Words>(all.end) - first,
             .a = dscores + first,
             .a_row = kTileKeys,
             .a_k = 1,
             .b = tile.keys + first * work.width,
             .b_row = work.width,
             .c = work.dq + r * work.width,
             .c_row = work.width,
             .accumulate = true};
  multiply_weights<Words>(product, work.careful);
}

// The block's share of dk and dv: each key's sum over the rows that see it, in ascending order.
template <class Words>
void add_key_gradients(int64_t rows, const Workspace& work, Tile& tile) {
  int64_t begin_row = 0, end_row = 0;
  for (int64_t j = 0; j < tile.count; j += kGroupRows) {
    const int64_t end = min(j + kGroupRows, tile.count);
    while (begin_row < rows && work.rows[begin_row].seen.end <= tile.first + j) ++begin_row;
    while (end_row < rows && work.rows[end_row].seen.begin < tile.first + end) ++end_row;
    if (begin_row >= end_row) continue;
    const int64_t first = begin_row / Words::kNumbers;
    Product product{.rows = end - j,
                    .vecs = work.value_width / kLanes,
                    .depth = words_of<Words>(end_row) - first,
                    .a = work.weight_steps + first * kTileKeys + j,
                    .a_row = 1,
                    .a_k = kTileKeys,
                    .b = work.dout_steps + first * work.value_width,
                    .b_row = work.value_width,
                    .c = tile.dv + j * work.value_width,
                    .c_row = work.value_width,
                    .accumulate = true};
    multiply_weights<Words>(product, work.careful);
    product.vecs = work.width / kLanes;
    product.a = work.dscore_steps + first * kTileKeys + j;
    product.b = work.q_steps + first * work.width;
    product.b_row = work.width;
    product.c = tile.dk + j * work.width;
    product.c_row = work.width;
    multiply_weights<Words>(product, work.careful);
  }
}

// The block's share of dbias. The rows of one head come one after the other: those that share their
// elements, because bias is broadcast over queries, are summed before they are added.
void add_bias_gradient(const AttentionBackwardArgs& args, const KvHead& head, int64_t rows,
                       const Workspace& work, const Tile& tile) {
  const ScoreView& view = args.dbias;
  const auto place_of = [&](int64_t r) {
    return static_cast<float*>(view.data) + head.b * view.stride[0] +
           work.rows[r].head * view.stride[1] + work.rows[r].query * view.stride[2] +
           tile.first * view.stride[3];
  };
  for (int64_t start = 0; start < min(head.group, rows); ++start) {
    float sum[kTileKeys] = {};
    for (int64_t r = start; r < rows; r += head.group) {
      const float* dscores = work.dscores + r * kTileKeys;
      for (int64_t j = 0; j < kTileKeys; ++j) sum[j] += dscores[j];
      if (r + head.group < rows && place_of(r + head.group) == place_of(r)) continue;
      for (int64_t j = 0; j < tile.count; ++j) place_of(r)[j * view.stride[3]] += sum[j];
      zero(sum, kTileKeys);
    }
  }
}

// Brings the block's queries, output gradients and, where some of it is there already, dq.
template <class Words>
void enter_rows(const AttentionBackwardArgs& args, const KvHead& head, int64_t rows, bool read_dq,
                const Workspace& work) {
  const auto enter = [&](const HeadView& view, int64_t width, float factor, float* to,
                         float* steps) {
    const auto row = [&](int64_t r) {
      return view.at(head.b, work.rows[r].query, work.rows[r].head);
    };
    const int64_t stride = padded(words_of<Words>(width));
    for (int64_t r = 0; r < rows; ++r) read_row<Words>(row(r), width, factor, to + r * stride);
    if (steps != to) read_rows<Words>(row, rows, width, factor, steps);
  };
  enter(args.q, args.head_dim, args.scale, work.q, work.q_steps);
  enter(args.dout, args.value_dim, 1.0f, work.dout, work.dout_steps);
  for (int64_t r = 0; r < rows; ++r) {
    if (read_dq)
      read_row<Floats>(args.dq.at(head.b, work.rows[r].query, work.rows[r].head), args.head_dim,
                       1.0f, work.dq + r * work.width);
    else
      zero(work.dq + r * work.width, work.width);
  }
}

// Takes all rows of the part through the tiles in the workspace. Returns whether dq has no NaN.
template <class Words>
bool backward_tiles(const AttentionBackwardArgs& args, const Part& part, const float* delta,
                    const Wanted& wanted, int64_t tiles, Workspace& work) {
  const KvHead& head = part.head;
  const int64_t first_key = work.tiles[0].first, end_key = first_key + tiles * kTileKeys;
  bool numbers = true;
  for (int64_t first_row = part.first_row; first_row < part.end_row; first_row += kBlockRows) {
    const int64_t rows = min(kBlockRows, part.end_row - first_row);
    find_rows(args, head, first_row, rows, work.rows);
    const KeyRange seen = seen_together(work.rows, rows);
    if (is_empty(seen) || seen.begin >= end_key || seen.end <= first_key) continue;
    enter_rows<Words>(args, head, rows, wanted.dq && first_key > part.first_key, work);
    for (int64_t t = 0; t < tiles; ++t) {
      Tile& tile = work.tiles[t];
      if (is_empty(clip_to_tile(seen, tile.first))) continue;
      enter_tile<Words>(args, head, wanted, tile);
      for (int64_t r = 0; r < rows; r += kGroupRows)
        group_backward<Words>(args, part, delta, r, min(kGroupRows, rows - r), tile, wanted, work);
      if (wanted.dbias) add_bias_gradient(args, head, rows, work, tile);
      if (wanted.dkv) add_key_gradients<Words>(rows, work, tile);
    }
    if (!wanted.dq) continue;
    numbers &= !has_nan(work.dq, rows * work.width);
    for (int64_t r = 0; r < rows; ++r)
      write_row(work.dq + r * work.width, args.head_dim, 1.0f,
                args.dq.at(head.b, work.rows[r].query, work.rows[r].head));
  }
  return numbers;
}

// Returns whether no gradient of queries, keys or values is a NaN.
template <class Words>
bool backward_part(const AttentionBackwardArgs& args, const Part& part, const float* delta,
                   const Wanted& wanted, Workspace& work) {
  const KvHead& head = part.head;
  if (wanted.dq)
    for (int64_t row = part.first_row; row < part.end_row; ++row)
      zero(args.dq.at(head.b, row / head.group, head.kv_head * head.group + row % head.group),
           args.head_dim);
  int64_t first = part.first_key;
  bool numbers = true;
  while (first < part.end_key) {
    int64_t tiles = 0;
    for (; tiles < kTilesTogether && first < part.end_key; ++tiles, first += kTileKeys) {
      Tile& tile = work.tiles[tiles];
      tile.first = first;
      tile.count = min(kTileKeys, args.keys - first);
      tile.entered = false;
      if (!wanted.dkv) continue;
      zero(tile.dk, kTileKeys * work.width);
      zero(tile.dv, kTileKeys * work.value_width);
    }
    numbers &= backward_tiles<Words>(args, part, delta, wanted, tiles, work);
    if (!wanted.dkv) continue;
    for (int64_t t = 0; t < tiles; ++t) {
      const Tile& tile = work.tiles[t];
      numbers &= !has_nan(tile.dk, kTileKeys * work.width) &&
                 !has_nan(tile.dv, kTileKeys * work.value_width);
      for (int64_t j = 0; j < tile.count; ++j) {
        write_row(tile.dk + j * work.width, args.head_dim, 1.0f,
                  args.dk.at(head.b, tile.first + j, head.kv_head));
        write_row(tile.dv + j * work.value_width, args.value_dim, 1.0f,
                  args.dv.at(head.b, tile.first + j, head.kv_head));
      }
    }
  }
  return numbers;
}

// delta = rowsum(dout out) for every row.
void row_deltas(const AttentionBackwardArgs& args, float* delta) {
  const int64_t queries = args.queries, heads = args.heads;
  parallel_chunks(args.batch * queries, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / queries, i = n % queries;
      for (int64_t h = 0; h < heads; ++h) {
        const float* out = args.out.at(b, i, h);
        const float* dout = args.dout.at(b, i, h);
        Vec sum{};
        int64_t c = 0;
        for (; c + kLanes <= args.value_dim; c += kLanes)
          sum = fma(load(out + c), load(dout + c), sum);
        if (c < args.value_dim)
          sum = fma(load_partial(out + c, args.value_dim - c),
                    load_partial(dout + c, args.value_dim - c), sum);
        delta[(b * heads + h) * queries + i] = sum_of_lanes(sum)[0];
      }
    }
  });
}

template <class Words>
void backward(const AttentionBackwardArgs& args) {
  const int64_t group = args.heads / args.kv_heads, rows = args.queries * group;
  const int64_t heads = args.batch * args.kv_heads, floats = floats_per_thread(args);
  const int64_t tiles = ceil_div(args.keys, kTileKeys), blocks = ceil_div(rows, kBlockRows);
  float* delta = args.scratch.as<float>();
  float* scratch = delta + row_floats(args);
  row_deltas(args, delta);

  const auto kv_head = [&](int64_t head) {
    return KvHead{head / args.kv_heads, head % args.kv_heads, group};
  };
  const auto run = [&](const Part& part, const Wanted& wanted, int worker) {
    Pieces pieces{scratch + worker * floats};
    Workspace work;
    place<Words>(args, pieces, work);
    // A zero times a NaN is one: it may be of what a row does not see.
    work.careful = !backward_part<Words>(args, part, delta, wanted, work);
    if (work.careful) backward_part<Words>(args, part, delta, wanted, work);
  };
  const auto rows_of_block = [&](int64_t block, int64_t& first, int64_t& end) {
    first = block * kBlockRows;
    end = min(first + kBlockRows, rows);
  };

  // A task per kv head does all at once, five products a tile. Where that leaves threads idle for
  // longer than it takes to compute the weights twice, dk and dv go by tile, then dq by block:
  // seven.
  const int64_t threads = num_threads();
  if (5 * ceil_div(heads, threads) * threads <= 7 * heads) {
    parallel_for(heads, [&](int64_t head, int worker) {
      run({kv_head(head), 0, args.keys, 0, rows}, {.dq = true, .dkv = true}, worker);
    });
  } else {
    parallel_for(heads * tiles, [&](int64_t task, int worker) {
      const int64_t first = task % tiles * kTileKeys;
      run({kv_head(task / tiles), first, min(first + kTileKeys, args.keys), 0, rows}, {.dkv = true},
          worker);
    });
    parallel_for(heads * blocks, [&](int64_t task, int worker) {
      Part part{.head = kv_head(task / blocks), .first_key = 0, .end_key = args.keys};
      rows_of_block(task % blocks, part.first_row, part.end_row);
      run(part, {.dq = true}, worker);
    });
  }
  if (args.dbias.data == nullptr) return;

  // Tasks that share no element of dbias; each sums over shared elements in order. Heads that share
  // elements keep all blocks in one task if a block's edge could part the heads of a query; so do
  // queries that are not at least a row of keys apart.
  const int64_t* stride = args.dbias.stride;
  const int64_t b_tasks = stride[0] != 0 ? args.batch : 1;
  const int64_t h_tasks = stride[1] != 0 ? args.kv_heads : 1;
  const bool rows_apart = stride[2] != 0 && stride[2] >= args.keys * stride[3];
  const bool by_block = rows_apart && (stride[1] != 0 || kBlockRows % group == 0);
  const int64_t t_tasks = by_block ? blocks : 1;
  parallel_for(b_tasks * h_tasks * t_tasks, [&](int64_t task, int worker) {
    const int64_t b_task = task / (h_tasks * t_tasks), h_task = task / t_tasks % h_tasks;
    for (int64_t b = b_task; b < args.batch; b += b_tasks)
      for (int64_t h = h_task; h < args.kv_heads; h += h_tasks) {
        Part part{kv_head(b * args.kv_heads + h), 0, args.keys, 0, rows};
        if (t_tasks > 1) rows_of_block(task % t_tasks, part.first_row, part.end_row);
        run(part, {.dbias = true}, worker);
      }
  });
}

}  // namespace

int64_t attention_backward_scratch(const AttentionArgs& args) {
  return (row_floats(args) + num_threads() * floats_per_thread(args)) *
         static_cast<int64_t>(sizeof(float));
}

void attention_backward_kernel(const Context& context, const AttentionBackwardArgs& args) {
  if (context.bfloat16)
    backward<Pairs>(args);
  else
    backward<Floats>(args);
}

}  // namespace llmcore::LLMCORE_ISA
