// Products with packed weights on CUDA: tensor cores multiply words as panels hold them.
//
// A warp takes two panels, a row of the tensor core's matrix being an output and a column a row of
// x: 16 bytes of a line are the words of four outputs, two for each of two matrices. Which words
// meet is free as long as both sides agree: lane t of four takes words 2t and 2t + 1 of eight, of
// the panel and of x. Sums are cut along K into kShares, which are added up in order: a row's
// result depends on K alone, whichever kernel it is from.
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "ops/epilogue_cuda.h"
#include "ops/packed_formats_cuda.h"
#include "ops/row_norm_cuda.h"

namespace llmcore::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kShares = 8;
constexpr int kTileRows = 8, kPairOutputs = 2 * kPanel;  // of x, of two panels: a warp's tile
constexpr int kStageWords = 32;                          // of a row of x: what rows are padded to

struct PackedArgs {
  const uint32_t* weights;
  const void* raw_x;                // [rows, depth]
  const uint32_t* x = nullptr;      // rounded, [rows, x_words], zero beyond the depth
  const float* x_scales = nullptr;  // [rows]; not of bfloat16
  int64_t rows, outputs, depth, panel_words, x_words, steps;
  NormOfRow norm;  // before x is rounded
  Epilogue to;
};

// ---- The rounding of x

__device__ __forceinline__ uint32_t magnitude(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

// All threads of a block round a row, to bfloat16 or to the nearest integers from -127 to 127,
// after its norm if there is one. A scale is NaN where the row has an infinity or a NaN.
template <class Format, class X>
__device__ __forceinline__ void round_row(const X* row, int64_t depth, int64_t row_words,
                                          const NormOfRow& norm, uint32_t* words, float* scale) {
  constexpr int kWeights = Format::kWeights;
  NormOfRow::Moments of_row = {};
  if (norm.wanted()) {
    __shared__ float sums[kWarp];
    of_row = norm.moments(depth, sums, [&](int64_t k) { return as_float(row[k]); });
  }
  const auto load = [&](int64_t word, float(&x)[kWeights]) {
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int64_t k = word * kWeights + i;
      x[i] = k < depth ? as_float(row[k]) : 0.0f;
      if (norm.wanted() && k < depth) x[i] = norm.apply(of_row, x[i], k);
    }
  };
  if constexpr (Format::kFormat == DType::kPackedBFloat16) {
#pragma unroll 4
    for (int64_t w = threadIdx.x; w < row_words; w += kThreads) {
      float x[kWeights];
      load(w, x);
      words[w] = pack_bfloat16(x[0], x[1]);
    }
  } else {
    __shared__ uint32_t shared[kWarp];
    uint32_t largest = 0;  // magnitudes as integers: NaN is above infinity, that above all others
#pragma unroll 4
    for (int64_t w = threadIdx.x; w < row_words; w += kThreads) {
      float x[kWeights];
      load(w, x);
#pragma unroll
      for (int i = 0; i < kWeights; ++i)
        largest = largest > magnitude(x[i]) ? largest : magnitude(x[i]);
    }
    largest =
        block_reduce(largest, shared, 0u, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
    const float most = __uint_as_float(largest);
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    if (threadIdx.x == 0) *scale = most / 127.0f + (most - most);
    // Added to this, a small integer is what the lowest bits hold.
    constexpr float kRounder = 0x1.8p23f;
#pragma unroll 4
    for (int64_t w = threadIdx.x; w < row_words; w += kThreads) {
      float x[kWeights];
      load(w, x);
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < kWeights; ++i)
        if (w * kWeights + i < depth)
          word |= (__float_as_uint(fmaf(x[i], inverse, kRounder)) & 255u) << (8 * i);
      words[w] = word;
    }
  }
}

template <class Format, class X>
__global__ void __launch_bounds__(kThreads)
    round_rows(const X* x, uint32_t* words, float* scales, int64_t depth, int64_t row_words,
               NormOfRow norm) {
  take_turn();
  round_row<Format>(x + blockIdx.x * depth, depth, row_words, norm, words + blockIdx.x * row_words,
                    scales + blockIdx.x);
}

// ---- The product

// Panel number `panel`, or the last: what is beyond is computed and dropped.
__device__ __forceinline__ const uint32_t* panel_at(const PackedArgs& args, int64_t panel) {
  const int64_t last = packed_panels(args.outputs) - 1;
  return args.weights + (panel < last ? panel : last) * args.panel_words;
}
// A lane's place in the pair of panels.
__device__ __forceinline__ const uint4* lane_panel(const PackedArgs& args, int64_t pair, int g) {
  return reinterpret_cast<const uint4*>(panel_at(args, 2 * pair + g / 4)) + g % 4;
}

// A tile's sums into [row][output].
template <class Sum, int kWidth>
__device__ __forceinline__ void spread(const Sums<Sum>& sums, int lane, int first_output,
                                       Sum (&to)[kTileRows][kWidth]) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[2 * t + i % 2][first_output + 4 * g + 2 * half + i / 2] = sums[half][i];
}

// What is added to an element of C.
template <class T>
__device__ __forceinline__ Terms<1> terms_at(const PackedArgs& args, int64_t row, int64_t output) {
  if (row >= args.rows || output >= args.outputs) return {};
  return terms_of<T, 1>(args.to, row * args.outputs + output, output);
}
template <class Format, class T>
__device__ __forceinline__ void finish_sum(const PackedArgs& args, const float* x_scales,
                                           const Terms<1>& terms, typename Format::Sum sum,
                                           int64_t row, int64_t output) {
  if (row >= args.rows || output >= args.outputs) return;
  const uint32_t* const lane = panel_at(args, output / kPanel) + output % kPanel;
  float y[1] = {Format::value(sum, lane, args.depth, x_scales + row)};
  finish<T>(args.to, row * args.outputs + output, terms, y);
}

// The steps that a warp takes of a product of few rows.
struct Share {
  int64_t begin, end;
};
__device__ __forceinline__ Share share_of(const PackedArgs& args) {
  const int64_t share = blocks_of(args.steps, kShares), begin = threadIdx.x / kWarp * share;
  return {begin, begin + share < args.steps ? begin + share : args.steps};
}

// Weights do not depend on the kernel ahead: a warp's share of two panels comes while that runs.
template <class Format>
__device__ __forceinline__ void prefetch_operands(const PackedArgs& args) {
  if (threadIdx.x == 0) args.norm.prefetch_parameters(args.depth);
  constexpr int64_t kStepBytes = Format::kStepLines * kPanel * 4;
  const Share share = share_of(args);
  const int64_t begin = share.begin * kStepBytes, most = args.panel_words * 4;
  const int64_t end = share.end * kStepBytes < most ? share.end * kStepBytes : most;
  const int64_t which = threadIdx.x % kWarp;
  if (which >= kPairOutputs / kPanel || begin >= end) return;
  const int64_t panel = int64_t{blockIdx.y} * (kPairOutputs / kPanel) + which;
  prefetch(reinterpret_cast<const char*>(panel_at(args, panel)) + begin, end - begin);
}

// Few rows: a block takes two panels, each warp a share of K. X is the type of x that every block
// rounds by itself, in its shared memory, which saves a kernel; or void where it is rounded. The
// first words are under way meanwhile.
template <class Format, class T, int kTiles, class X>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1) multiply_few(PackedArgs args) {
  prefetch_operands<Format>(args);
  take_turn();
  using Sum = typename Format::Sum;
  using Words = typename Format::Words;
  constexpr int kBatch = kTiles == 1 ? Format::kBatch : kTiles == 2 ? 2 : 1;  // steps at a time
  static_assert(kShares == kWarps && kThreads == kTileRows * kPairOutputs);
  __shared__ Sum parts[kShares][kTileRows][kPairOutputs];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTiles * kTileRows;
  const uint4* const panel = lane_panel(args, blockIdx.y, g);
  const auto [begin, end] = share_of(args);
  Words words[kBatch];
  const auto fetch = [&](int64_t step) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (step + u < end) words[u].load(panel, step + u, args.depth, t);
  };
  fetch(begin);
  // Of C a thread finishes an element of each tile: what is added to it comes early, too.
  const int64_t row = first_row + threadIdx.x / kPairOutputs;
  const int64_t output = int64_t{blockIdx.y} * kPairOutputs + threadIdx.x % kPairOutputs;
  Terms<1> terms[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    terms[tile] = terms_at<T>(args, row + tile * kTileRows, output);

  constexpr bool kRounds = !std::is_void_v<X>;
  const uint32_t* x = args.x;
  const float* x_scales = args.x_scales;
  if constexpr (kRounds) {
    auto* const rounded = dynamic_shared<uint32_t>();
    auto* const scales = reinterpret_cast<float*>(rounded + args.rows * args.x_words);
    for (int64_t i = 0; i < args.rows; ++i)
      round_row<Format>(static_cast<const X*>(args.raw_x) + i * args.depth, args.depth,
                        args.x_words, args.norm, rounded + i * args.x_words, scales + i);
    __syncthreads();
    x = rounded;
    x_scales = scales;
  }
  const uint32_t* rows[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t mine = first_row + tile * kTileRows + g;
    rows[tile] = x + (mine < args.rows ? mine : args.rows - 1) * args.x_words;
  }

  Sums<Sum> sums[kTiles] = {};
  for (int64_t step = begin; step < end; step += kBatch) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (step + u < end)
        words[u].multiply(
            t,
            [&](int tile, int word, uint32_t(&pair)[2]) {
              const uint2 both = *reinterpret_cast<const uint2*>(
                  rows[tile] + (step + u) * Format::kStepWords + word);
              pair[0] = both.x;
              pair[1] = both.y;
            },
            sums);
    fetch(step + kBatch);
  }

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile > 0) __syncthreads();
    spread(sums[tile], lane, 0, parts[warp]);
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x) / kPairOutputs;
    const int o = static_cast<int>(threadIdx.x) % kPairOutputs;
    Sum total = parts[0][i][o];
#pragma unroll
    for (int part = 1; part < kShares; ++part) total += parts[part][i][o];
    finish_sum<Format, T>(args, x_scales, terms[tile], total, row + tile * kTileRows, output);
  }
}

// Many rows: each warp of a block takes two panels, all of them the same rows of x, which pass
// through shared memory; words are loaded a stage ahead.
constexpr int kManyTiles = 8, kManyRows = kManyTiles * kTileRows, kStages = 3;
constexpr int kManyOutputs = kWarps * kPairOutputs;
constexpr int kRowWords = kStageWords + 8;  // no two of half a warp's pairs of words in one bank

template <class Format, class T>
__global__ void __launch_bounds__(kThreads) multiply_many(PackedArgs args) {
  take_turn();
  using Sum = typename Format::Sum;
  constexpr int kSteps = kStageWords / Format::kStepWords;  // of a stage
  constexpr bool kExact = std::is_same_v<Sum, int>;
  __shared__ __align__(16) uint32_t staged[kStages][kManyRows][kRowWords];
  __shared__ Sum finished[kTileRows][kManyOutputs];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kManyRows;
  const uint4* const panel = lane_panel(args, static_cast<int64_t>(blockIdx.y) * kWarps + warp, g);

  const int64_t stages = blocks_of(args.steps, kSteps);
  const auto stage = [&](int64_t index) {
    if (index < stages)
      for (int i = thread; i < kManyRows * kStageWords / 4; i += kThreads) {
        const int row = i / (kStageWords / 4), word = i % (kStageWords / 4) * 4;
        const bool valid = first_row + row < args.rows;
        cp_async16(
            &staged[index % kStages][row][word],
            args.x + (valid ? first_row + row : 0) * args.x_words + index * kStageWords + word,
            valid);
      }
    cp_async_commit();
  };
  typename Format::Words words[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) words[s].load(panel, s, args.depth, t);
  // Sums of shares that are done. Integers are exact in any order.
  Sums<Sum> sums[kManyTiles] = {};
  Sum* const done = dynamic_shared<Sum>() + thread;
  const int64_t share = blocks_of(args.steps, kShares);
  int64_t boundary = share;
  const auto add_done = [&](bool last) {
#pragma unroll
    for (int tile = 0; tile < kManyTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        Sum& sum = sums[tile][i / 4][i % 4];
        Sum& total = done[(tile * 8 + i) * kThreads];
        if (boundary > share) sum += total;
        if (last) continue;
        total = sum;
        sum = Sum{};
      }
  };

  static_assert(kStages == 3);
  stage(0);
  stage(1);
  for (int64_t index = 0; index < stages; ++index) {
    cp_async_wait<1>();
    __syncthreads();
    stage(index + 2);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t step = index * kSteps + s;
      if (!kExact && step == boundary) {
        add_done(false);
        boundary += share;
      }
      words[s].multiply(
          t,
          [&](int tile, int word, uint32_t(&pair)[2]) {
            const uint2 both = *reinterpret_cast<const uint2*>(
                &staged[index % kStages][tile * kTileRows + g][s * Format::kStepWords + word]);
            pair[0] = both.x;
            pair[1] = both.y;
          },
          sums);
      words[s].load(panel, step + kSteps, args.depth, t);
    }
  }
  if (!kExact) add_done(true);

#pragma unroll
  for (int tile = 0; tile < kManyTiles; ++tile) {
    if (tile > 0) __syncthreads();
    spread(sums[tile], lane, warp * kPairOutputs, finished);
    __syncthreads();
    static_assert(kThreads == kManyOutputs);
#pragma unroll 1
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t row = first_row + tile * kTileRows + i;
      const int64_t output = static_cast<int64_t>(blockIdx.y) * kManyOutputs + thread;
      finish_sum<Format, T>(args, args.x_scales, terms_at<T>(args, row, output),
                            finished[i][thread], row, output);
    }
  }
}

// Rows of x with all stages of words, and so with all steps.
template <class Format>
int64_t padded_words(int64_t depth) {
  return blocks_of(depth, kStageWords * Format::kWeights) * kStageWords;
}

// How many rows of x every block rounds by itself, and how much shared memory that may take.
constexpr int64_t kRoundedRows = 4, kRoundedBytes = 40 << 10;

template <class Format, class T, class X>
void start(const Context& context, PackedArgs args, uint32_t* words) {
  // Fewer blocks than this leave most of a GPU idle.
  constexpr int64_t kEnoughBlocks = 64;
  const auto grid = [&](int64_t rows, int64_t outputs) {
    return dim3(static_cast<unsigned>(blocks_of(args.rows, rows)),
                static_cast<unsigned>(blocks_of(args.outputs, outputs)));
  };
  const int64_t rounded_bytes = args.rows * (args.x_words + 1) * 4;
  if (args.rows <= kRoundedRows && rounded_bytes <= kRoundedBytes)
    return launch(context, multiply_few<Format, T, 1, X>, grid(kTileRows, kPairOutputs),
                  dim3(kThreads), static_cast<size_t>(rounded_bytes), args);

  auto* const scales = reinterpret_cast<float*>(words + args.rows * args.x_words);
  launch(context, round_rows<Format, X>, dim3(static_cast<unsigned>(args.rows)), dim3(kThreads), 0,
         static_cast<const X*>(args.raw_x), words, scales, args.depth, args.x_words, args.norm);
  args.x = words;
  args.x_scales = scales;
  const auto few = [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    launch(context, multiply_few<Format, T, kTiles, void>, grid(kTiles * kTileRows, kPairOutputs),
           dim3(kThreads), 0, args);
  };
  const dim3 many = grid(kManyRows, kManyOutputs);
  if (args.rows <= kTileRows)
    few(std::integral_constant<int, 1>{});
  else if (args.rows <= 2 * kTileRows)
    few(std::integral_constant<int, 2>{});
  else if (args.rows <= 4 * kTileRows || int64_t{many.x} * many.y < kEnoughBlocks)
    few(std::integral_constant<int, 4>{});
  else
    launch(context, multiply_many<Format, T>, many, dim3(kThreads),
           std::is_same_v<typename Format::Sum, int> ? 0 : kManyRows * kManyOutputs * sizeof(float),
           args);
}

template <class Format>
void multiply(const Context& context, const MatmulArgs& args) {
  const int64_t depth = args.a.dim(1);
  const PackedArgs call{.weights = args.b.as<uint32_t>(),
                        .raw_x = args.a.data,
                        .rows = args.a.dim(0),
                        .outputs = args.c.dim(1),
                        .depth = depth,
                        .panel_words = panel_bytes(Format::kFormat, depth) / 4,
                        .x_words = padded_words<Format>(depth),
                        .steps = blocks_of(depth, Format::kStepWords * Format::kWeights),
                        .norm = NormOfRow(args.norm),
                        .to = Epilogue(args)};
  with_type(args.c.dtype, [&](auto c) {
    with_type(args.a.dtype, [&](auto a) {
      start<Format, decltype(c), decltype(a)>(context, call, args.scratch.as<uint32_t>());
    });
  });
}

int64_t scratch_bytes(const MatmulArgs& args) {
  int64_t words = 0;
  with_format(args.b.dtype,
              [&]<class Format>(Format) { words = padded_words<Format>(args.a.dim(1)); });
  return args.a.dim(0) * (words + 1) * 4;
}

void matmul(const Context& context, const MatmulArgs& args) {
  with_format(args.b.dtype, [&]<class Format>(Format) { multiply<Format>(context, args); });
}

// ---- Rows

template <class Format>
__global__ void unpack(const uint32_t* weights, const int32_t* rows, float* out, int64_t depth,
                       int64_t panel_words) {
  take_turn();
  const int64_t row = rows[blockIdx.x];
  const uint32_t* const lane = weights + row / kPanel * panel_words + row % kPanel;
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x)
    out[blockIdx.x * depth + k] = Format::weight(lane, depth, k);
}

void unpack_rows(const Context& context, const UnpackRowsArgs& args) {
  const int64_t depth = args.packed.dim(1), rows = args.rows.numel();
  if (rows == 0) return;
  with_format(args.packed.dtype, [&]<class Format>(Format) {
    launch(context, unpack<Format>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0,
           args.packed.as<uint32_t>(), args.rows.as<int32_t>(), args.out.f32(), depth,
           panel_bytes(Format::kFormat, depth) / 4);
  });
}

}  // namespace

extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {.pack = nullptr,
                                      .get_stored = nullptr,
                                      .set_stored = nullptr,
                                      .unpack_rows = unpack_rows,
                                      .scratch_bytes = scratch_bytes,
                                      .matmul = matmul,
                                      .normalises = true};

}  // namespace llmcore::cuda
