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
#include "ops/packed.h"
#include "ops/row_norm_cuda.h"

namespace llmcore::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kShares = 8;
constexpr int kPanel = static_cast<int>(kPanelOutputs);
constexpr int kTileRows = 8, kPairOutputs = 2 * kPanel;  // of x, of two panels: a warp's tile
constexpr int kPairWords = 8;    // of an output, in a product of tensor cores
constexpr int kStageWords = 32;  // of a row of x: what rows are padded to

struct PackedArgs {
  const uint32_t* weights;
  const void* raw_x;                // [rows, depth]
  const uint32_t* x = nullptr;      // rounded, [rows, x_words], zero beyond the depth
  const float* x_scales = nullptr;  // [rows]; not of bfloat16
  int64_t rows, outputs, depth, panel_words, x_words, steps;
  NormOfRow norm;  // before x is rounded
  Epilogue to;
};

// Sums of a tile: of outputs 4q, 4q + 1 and of 4q + 2, 4q + 3, as mma_…() lays them out.
template <class T>
using Sums = T[2][4];

// line(l) of a panel is l * kLine on; `panel` is at a lane's four outputs.
constexpr int kLine = kPanel / 4;
__device__ __forceinline__ uint4 load_line(const uint4* panel, int64_t line, bool valid) {
  return valid ? __ldg(panel + line * kLine) : make_uint4(0, 0, 0, 0);
}

// A format's load() gives a lane's words of a step, zeros beyond the last; multiply() adds their
// products with what x(tile, word, pair) gives, two words from `word` of the step on.
template <class Format>
struct Words {
  uint4 first, second;

  __device__ __forceinline__ void load(const uint4* panel, int64_t step, int64_t depth, int t) {
    const int64_t lines = (depth + Format::kWeights - 1) / Format::kWeights;
    const int64_t line = step * kPairWords + 2 * t;
    first = load_line(panel, line, line < lines);
    second = load_line(panel, line + 1, line + 1 < lines);
  }
  template <int kTiles, class X>
  __device__ __forceinline__ void multiply(int t, const X& x,
                                           Sums<typename Format::Sum> (&sums)[kTiles]) const {
    constexpr uint32_t kFlip = Format::kFlip;
    const uint32_t a[2][4] = {
        {first.x ^ kFlip, first.y ^ kFlip, second.x ^ kFlip, second.y ^ kFlip},
        {first.z ^ kFlip, first.w ^ kFlip, second.z ^ kFlip, second.w ^ kFlip}};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t b[2];
      x(tile, 2 * t, b);
      Format::multiply(sums[tile][0], a[0], b);
      Format::multiply(sums[tile][1], a[1], b);
    }
  }
};

struct BFloat16Panels {
  using Sum = float;
  using Words = cuda::Words<BFloat16Panels>;
  static constexpr DType kFormat = DType::kPackedBFloat16;
  // Words of a step of x, lines of one of a panel, weights in a word.
  static constexpr int kStepWords = kPairWords, kStepLines = kPairWords, kWeights = 2;
  static constexpr uint32_t kFlip = 0;

  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_bfloat16(d, a, b);
  }
  static __device__ __forceinline__ float value(float sum, const uint32_t*, int64_t, const float*) {
    return sum;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t, int64_t k) {
    return __uint_as_float(lane[k / 2 * kPanel] >> (k % 2 * 16) << 16);
  }
};

struct Int8Panels {
  using Sum = int;
  using Words = cuda::Words<Int8Panels>;
  static constexpr DType kFormat = DType::kPackedInt8;
  static constexpr int kStepWords = kPairWords, kStepLines = kPairWords, kWeights = 4;
  static constexpr uint32_t kFlip = 0x80808080u;  // from q + 128 to q

  static __device__ __forceinline__ void multiply(int (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_int8(d, a, b);
  }
  static __device__ __forceinline__ float scale(const uint32_t* lane, int64_t depth) {
    return __uint_as_float(lane[(depth + 3) / 4 * kPanel]);
  }
  static __device__ __forceinline__ float value(int sum, const uint32_t* lane, int64_t depth,
                                                const float* x_scale) {
    return static_cast<float>(sum) * scale(lane, depth) * *x_scale;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t depth, int64_t k) {
    const uint32_t code = lane[k / 4 * kPanel] >> (k % 4 * 8) & 255u;
    return (static_cast<float>(code) - 128.0f) * scale(lane, depth);
  }
};

// A step is two groups. Integers are multiplied as 16 q: half a byte in the upper half of one.
struct Int4Panels {
  using Sum = float;
  static constexpr DType kFormat = DType::kPackedInt4;
  static constexpr int kStepWords = 2 * kPairWords, kWeights = 4;
  static constexpr int kGroupLines = 4, kStepLines = 2 * kGroupLines + 1;
  static constexpr int64_t kStepWeights = 2 * kInt4Group;

  static __device__ __forceinline__ float scale(uint32_t both, int group) {
    return __uint_as_float(group == 0 ? both << 16 : both & 0xffff0000u);
  }

  struct Words {
    uint4 bytes[2], scales;

    __device__ __forceinline__ void load(const uint4* panel, int64_t step, int64_t depth, int t) {
      const bool valid = step * kStepWeights < depth;
      const int64_t line = step * kStepLines;
      bytes[0] = load_line(panel, line + t, valid);
      bytes[1] = load_line(panel, line + kGroupLines + t, valid);
      scales = load_line(panel, line + 2 * kGroupLines, valid);
    }
    template <int kTiles, class X>
    __device__ __forceinline__ void multiply(int t, const X& x, Sums<float> (&sums)[kTiles]) const {
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const auto low = [](uint32_t w) { return (w << 4 & 0xf0f0f0f0u) ^ 0x80808080u; };
        const auto high = [](uint32_t w) { return (w & 0xf0f0f0f0u) ^ 0x80808080u; };
        const uint4 w = bytes[group];
        const uint32_t a[2][4] = {{low(w.x), low(w.y), high(w.x), high(w.y)},
                                  {low(w.z), low(w.w), high(w.z), high(w.w)}};
        const float scale_of[2][2] = {{scale(scales.x, group), scale(scales.y, group)},
                                      {scale(scales.z, group), scale(scales.w, group)}};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t b[2];
          x(tile, group * kPairWords + 2 * t, b);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int whole[4] = {};
            mma_int8(whole, a[half], b);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              sums[tile][half][i] = fmaf(static_cast<float>(whole[i]) * 0.0625f,
                                         scale_of[half][i / 2], sums[tile][half][i]);
          }
        }
      }
    }
  };

  static __device__ __forceinline__ float value(float sum, const uint32_t*, int64_t,
                                                const float* x_scale) {
    return sum * *x_scale;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t, int64_t k) {
    const uint32_t* const step = lane + k / kStepWeights * kStepLines * kPanel;
    const int64_t i = k % kStepWeights;
    const uint32_t code = step[i / 8 * kPanel] >> (i % 4 * 8 + i / 4 % 2 * 4) & 15u;
    return (static_cast<float>(code) - 8.0f) *
           scale(step[2 * kGroupLines * kPanel], static_cast<int>(i / kInt4Group));
  }
};

template <class Visit>
void with_format(DType format, Visit visit) {
  if (format == DType::kPackedBFloat16) return visit(BFloat16Panels{});
  if (format == DType::kPackedInt8) return visit(Int8Panels{});
  visit(Int4Panels{});
}

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

template <class Format, class T>
__device__ __forceinline__ void finish_sum(const PackedArgs& args, const float* x_scales,
                                           typename Format::Sum sum, int64_t row, int64_t output) {
  if (row >= args.rows || output >= args.outputs) return;
  const uint32_t* const lane = panel_at(args, output / kPanel) + output % kPanel;
  float y[1] = {Format::value(sum, lane, args.depth, x_scales + row)};
  finish<T>(args.to, row * args.outputs + output, output, y);
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
__device__ __forceinline__ void prefetch_share(const PackedArgs& args) {
  constexpr int64_t kStepBytes = Format::kStepLines * kPanel * 4, kCacheLine = 128;
  const Share share = share_of(args);
  const int64_t begin = share.begin * kStepBytes, most = args.panel_words * 4;
  const int64_t end = share.end * kStepBytes < most ? share.end * kStepBytes : most;
  for (int which = 0; which < 2; ++which) {
    const auto* const panel =
        reinterpret_cast<const char*>(panel_at(args, int64_t{blockIdx.y} * 2 + which));
    for (int64_t i = begin + threadIdx.x % kWarp * kCacheLine; i < end; i += kWarp * kCacheLine)
      prefetch_line(panel + i);
  }
}

// Few rows: a block takes two panels, each warp a share of K. X is the type of x that every block
// rounds by itself, in its shared memory, which saves a kernel; or void where it is rounded.
template <class Format, class T, int kTiles, class X>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1) multiply_few(PackedArgs args) {
  prefetch_share<Format>(args);
  take_turn();
  using Sum = typename Format::Sum;
  static_assert(kShares == kWarps && kThreads == kTileRows * kPairOutputs);
  __shared__ Sum parts[kShares][kTileRows][kPairOutputs];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTiles * kTileRows;
  const uint4* const panel = lane_panel(args, blockIdx.y, g);
  constexpr bool kRounds = !std::is_void_v<X>;
  const uint32_t* x = args.x;
  const float* x_scales = args.x_scales;
  if constexpr (kRounds) {
    auto* const words = dynamic_shared<uint32_t>();
    auto* const scales = reinterpret_cast<float*>(words + args.rows * args.x_words);
    for (int64_t row = 0; row < args.rows; ++row)
      round_row<Format>(static_cast<const X*>(args.raw_x) + row * args.depth, args.depth,
                        args.x_words, args.norm, words + row * args.x_words, scales + row);
    __syncthreads();
    x = words;
    x_scales = scales;
  }
  const uint32_t* rows[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t row = first_row + tile * kTileRows + g;
    rows[tile] = x + (row < args.rows ? row : args.rows - 1) * args.x_words;
  }

  Sums<Sum> sums[kTiles] = {};
  const auto [begin, end] = share_of(args);
  [[maybe_unused]] constexpr int kUnroll = kTiles == 1 ? 4 : kTiles == 2 ? 2 : 1;
#pragma unroll kUnroll
  for (int64_t step = begin; step < end; ++step) {
    typename Format::Words words;
    words.load(panel, step, args.depth, t);
    words.multiply(
        t,
        [&](int tile, int word, uint32_t(&pair)[2]) {
          const auto* const at =
              reinterpret_cast<const uint2*>(rows[tile] + step * Format::kStepWords + word);
          const uint2 both = kRounds ? *at : __ldg(at);
          pair[0] = both.x;
          pair[1] = both.y;
        },
        sums);
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
    finish_sum<Format, T>(args, x_scales, total, first_row + tile * kTileRows + i,
                          static_cast<int64_t>(blockIdx.y) * kPairOutputs + o);
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
    for (int i = 0; i < kTileRows; ++i)
      finish_sum<Format, T>(args, args.x_scales, finished[i][thread],
                            first_row + tile * kTileRows + i,
                            static_cast<int64_t>(blockIdx.y) * kManyOutputs + thread);
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
