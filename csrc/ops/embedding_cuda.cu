// Embedding in CUDA: a gather of rows, and its reverse by sorting.
//
// The reverse sums, for each row of a table, rows of the gradient: those whose id is the row's. Ids
// are sorted together with their places, so that they become runs, and the list is cut into chunks.
// A thread sums what a chunk has of a run in ascending n, and runs longer than a chunk are put
// together from their chunks, again in order: no atomics, and a row that all look up keeps the
// whole GPU busy.
#include "ops/embedding.h"

#include "cuda/philox.h"
#include "cuda/rows.h"

namespace llmcore::cuda {
namespace {

template <int kCount>
__device__ __forceinline__ void accumulate(float (&sum)[kCount], const float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] += x[i];
}

template <int kCount>
__device__ __forceinline__ void apply(const Dropout& dropout, uint64_t element,
                                      float (&x)[kCount]) {
  if (dropout.p == 0.0f) return;
  float factor[kCount];
  dropout_factors(dropout, element, factor);
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] *= factor[i];
}

template <class T>
__global__ void forward_kernel(EmbeddingArgs args, bool aligned) {
  take_turn();
  const int64_t width = args.table.cols();
  const auto [n, pack] = row_part(blocks_of(width, kPack<T>));
  const int64_t c = pack * kPack<T>, count = width - c;
  if (n >= args.out.rows() || count <= 0) return;
  float sum[kPack<T>], x[kPack<T>];
  const int64_t token = args.ids ? args.ids.as<int32_t>()[n] : n;
  load_up_to(args.table.f32() + token * width + c, count, aligned, sum);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) sum[i] *= args.scale;
  if (args.positions) {
    const int64_t row = args.position_ids.as<int32_t>()[n] + args.first_position;
    load_up_to(args.positions.f32() + row * width + c, count, aligned, x);
    accumulate(sum, x);
  }
  if (args.types) {
    const int64_t row = args.type_ids ? args.type_ids.as<int32_t>()[n] : 0;
    load_up_to(args.types.f32() + row * width + c, count, aligned, x);
    accumulate(sum, x);
  }
  apply(args.dropout, n * width + c, sum);
  store_up_to(args.out.as<T>() + n * width + c, sum, count, aligned);
}

void forward(const Context& context, const EmbeddingArgs& args) {
  const int64_t width = args.table.cols();
  with_type(args.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    bool aligned = true;
    for (const Tensor& tensor : {args.table, args.positions, args.types, args.out})
      aligned = aligned && packs<T>(tensor.data, width);
    launch_rows(context, forward_kernel<T>, args.out.rows(), blocks_of(width, kPack<T>), args,
                aligned);
  });
}

// The gradient of one table, and the row of it that each n adds to.
struct Gradient {
  float* rows;
  const int32_t* ids;  // null: all 0
  int64_t first;
  float scale;
};
struct Gradients {
  Gradient of[3];
  int count = 0;  // those that are wanted
};

Gradients gradients(const EmbeddingBackwardArgs& args) {
  Gradients wanted;
  const auto add = [&](const Tensor& table, const Tensor& ids, int64_t first, float scale) {
    if (table) wanted.of[wanted.count++] = {table.f32(), ids.as<int32_t>(), first, scale};
  };
  add(args.dtable, args.ids, 0, args.scale);
  add(args.dpositions, args.position_ids, args.first_position, 1.0f);
  add(args.dtypes, args.type_ids, 0, 1.0f);
  return wanted;
}

// A row and one n that adds to it: all differ, and sorted they are in the order of the sums.
using Key = uint64_t;
__device__ __forceinline__ uint32_t row_of(Key key) {
  return static_cast<uint32_t>(key >> 32);
}

constexpr int kTile = 1024;  // keys that a block sorts
constexpr int kChunk = 32;   // keys that a thread sums the gradients of

// Where key i goes when neighbouring runs of `run` sorted keys, a power of two, are merged.
__device__ __forceinline__ int64_t merged_place(const Key* keys, int64_t count, int64_t i,
                                                int64_t run) {
  const int64_t begin = i / run * run, sibling = begin ^ run;
  int64_t low = sibling, high = sibling + run < count ? sibling + run : count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (keys[middle] < keys[i])
      low = middle + 1;
    else
      high = middle;
  }
  return i + low - (begin < sibling ? sibling : begin);
}

// Keys beyond the last n are larger than all others.
__global__ void __launch_bounds__(kTile)
    sort_tiles_kernel(const __grid_constant__ Gradients gradients, int64_t rows, Key* keys) {
  take_turn();
  __shared__ Key buffers[2][kTile];
  const Gradient& gradient = gradients.of[blockIdx.y];
  const int i = threadIdx.x;
  const int64_t n = int64_t{blockIdx.x} * kTile + i;
  const int64_t row = gradient.first + (gradient.ids != nullptr && n < rows ? gradient.ids[n] : 0);
  Key *from = buffers[0], *to = buffers[1];
  from[i] = (n < rows ? static_cast<Key>(row) : Key{0xffffffffu}) << 32 | static_cast<Key>(n);
  __syncthreads();
  for (int run = 1; run < kTile; run *= 2) {
    to[merged_place(from, kTile, i, run)] = from[i];
    __syncthreads();
    Key* sorted = to;
    to = from;
    from = sorted;
  }
  keys[(int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kTile + i] = from[i];
}

__global__ void merge_kernel(const Key* from, Key* to, int64_t count, int64_t run) {
  take_turn();
  const int64_t begin = blockIdx.y * count, i = thread_index();
  to[begin + merged_place(from + begin, count, i, run)] = from[begin + i];
}

// What the sums of a table's gradient take. Sums of runs that go beyond a chunk wait in `parts`
// [chunks, 2, C]: first that of the run which began before, then of the one which goes on after.
struct Sums {
  Gradient gradient;
  const Key* keys;  // sorted
  float* parts;
  int64_t rows, width;
  __device__ bool same_row(int64_t i, int64_t j) const {
    return i >= 0 && j < rows && row_of(keys[i]) == row_of(keys[j]);
  }
  __device__ float* part(int64_t chunk, int which) const {
    return parts + (2 * chunk + which) * width;
  }
};

template <int kCount>
__device__ __forceinline__ void add_to_row(const Sums& sums, Key key, int64_t c, bool aligned,
                                           const float (&sum)[kCount]) {
  float* row = sums.gradient.rows + row_of(key) * sums.width + c;
  float total[kCount];
  load_up_to(row, sums.width - c, aligned, total);
  accumulate(total, sum);
  store_up_to(row, total, sums.width - c, aligned);
}

// Row parts: one of the chunks, and a pack of columns.
template <class T>
__global__ void sum_chunks_kernel(Sums sums, const T* dout, Dropout dropout, bool aligned) {
  take_turn();
  constexpr int kAhead = 4;  // rows that are loaded at a time
  const int64_t width = sums.width;
  const auto [chunk, pack] = row_part(blocks_of(width, kPack<T>));
  const int64_t begin = chunk * kChunk, c = pack * kPack<T>;
  if (begin >= sums.rows || c >= width) return;
  const int64_t end = begin + kChunk < sums.rows ? begin + kChunk : sums.rows;
  bool began_before = sums.same_row(begin - 1, begin);
  float sum[kPack<T>] = {};
  for (int64_t k = begin; k < end; k += kAhead) {
    Key keys[kAhead];
    uint4 bytes[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) keys[a] = sums.keys[k + a < end ? k + a : begin];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t n = static_cast<uint32_t>(keys[a]);
      bytes[a] = load_bytes(dout + n * width + c, width - c, aligned);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t at = k + a;
      if (at >= end) break;
      float x[kPack<T>];
      open_pack<T>(bytes[a], x);
      apply(dropout, static_cast<uint32_t>(keys[a]) * width + c, x);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) sum[i] += x[i] * sums.gradient.scale;
      const bool goes_on = sums.same_row(at, at + 1);
      if (goes_on && at + 1 < end) continue;
      if (began_before || goes_on)
        store_up_to(sums.part(chunk, began_before ? 0 : 1) + c, sum, width - c, aligned);
      else
        add_to_row(sums, keys[a], c, aligned, sum);
      began_before = false;
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) sum[i] = 0.0f;
    }
  }
}

// Runs that go beyond a chunk: a block for each chunk and kWarp packs of columns, which has
// something to do if such a run begins in it. Groups of threads take equal shares of the parts.
constexpr int kGroups = 8;

__global__ void join_chunks_kernel(Sums sums, bool aligned) {
  take_turn();
  constexpr int kColumns = kPack<float>;
  __shared__ float shared[kGroups][kWarp][kColumns];
  const int64_t width = sums.width, across = blocks_of(width, kColumns * kWarp);
  const int64_t chunk = blockIdx.x / across, begin = chunk * kChunk, end = begin + kChunk;
  if (!sums.same_row(end - 1, end)) return;
  if (sums.same_row(begin - 1, end)) return;  // it began before
  int64_t last = chunk + 1, beyond = blocks_of(sums.rows, kChunk);
  while (last + 1 < beyond) {
    const int64_t middle = last + (beyond - last) / 2;
    if (sums.same_row(end, middle * kChunk))
      last = middle;
    else
      beyond = middle;
  }

  const int64_t c = ((blockIdx.x - chunk * across) * kWarp + threadIdx.x) * kColumns;
  const int64_t share = blocks_of(last - chunk + 1, kGroups);
  const int64_t first = chunk + threadIdx.y * share;
  const int64_t stop = first + share < last + 1 ? first + share : last + 1;
  float sum[kColumns] = {}, x[kColumns];
#pragma unroll 4
  for (int64_t from = first; from < stop; ++from) {
    load_up_to(sums.part(from, from == chunk ? 1 : 0) + c, width - c, aligned, x);
    accumulate(sum, x);
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) shared[threadIdx.y][threadIdx.x][i] = sum[i];
  __syncthreads();
  if (threadIdx.y > 0 || c >= width) return;
  for (int group = 1; group < kGroups; ++group) accumulate(sum, shared[group][threadIdx.x]);
  add_to_row(sums, sums.keys[end], c, aligned, sum);
}

// Scratch holds the keys twice, and what chunks hand on.
struct Sizes {
  int64_t tiles, keys, chunks;  // keys of all the tables
  Sizes(int64_t rows, int tables)
      : tiles(blocks_of(rows, kTile)),
        keys(tables * tiles * kTile),
        chunks(blocks_of(rows, kChunk)) {}
};

int64_t backward_scratch(const EmbeddingBackwardArgs& args) {
  const Sizes sizes(args.dout.rows(), gradients(args).count);
  return 2 * sizes.keys * static_cast<int64_t>(sizeof(Key)) +
         2 * sizes.chunks * args.dout.cols() * static_cast<int64_t>(sizeof(float));
}

// The keys of all the tables, sorted.
const Key* sort(const Context& context, const Gradients& wanted, int64_t rows, const Sizes& sizes,
                Key* from) {
  const auto grid = [&](int64_t blocks) {
    return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(wanted.count));
  };
  Key* to = from + sizes.keys;
  launch(context, sort_tiles_kernel, grid(sizes.tiles), dim3(kTile), 0, wanted, rows, from);
  constexpr int kThreads = 256;
  for (int64_t run = kTile; run < sizes.tiles * kTile; run *= 2) {
    launch(context, merge_kernel, grid(sizes.tiles * kTile / kThreads), dim3(kThreads), 0, from, to,
           sizes.tiles * kTile, run);
    std::swap(from, to);
  }
  return from;
}

void backward(const Context& context, const EmbeddingBackwardArgs& args) {
  const int64_t rows = args.dout.rows(), width = args.dout.cols();
  const Gradients wanted = gradients(args);
  if (wanted.count == 0) return;
  const Sizes sizes(rows, wanted.count);
  Key* scratch = args.scratch.as<Key>();
  const Key* keys = sort(context, wanted, rows, sizes, scratch);
  for (int i = 0; i < wanted.count; ++i) {
    const Sums sums{wanted.of[i], keys + i * sizes.tiles * kTile,
                    reinterpret_cast<float*>(scratch + 2 * sizes.keys), rows, width};
    with_type(args.dout.dtype, [&](auto tag) {
      using T = decltype(tag);
      launch_rows(context, sum_chunks_kernel<T>, sizes.chunks, blocks_of(width, kPack<T>), sums,
                  args.dout.as<T>(), args.dropout,
                  packs<T>(args.dout.data, width) && packs<T>(sums.gradient.rows, width));
    });
    const int64_t across = blocks_of(width, kPack<float> * kWarp);
    launch(context, join_chunks_kernel, dim3(static_cast<unsigned>(sizes.chunks * across)),
           dim3(kWarp, kGroups), 0, sums, packs<float>(sums.gradient.rows, width));
  }
}

}  // namespace

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {
    .backward_scratch = backward_scratch, .forward = forward, .backward = backward};

}  // namespace llmcore::cuda
