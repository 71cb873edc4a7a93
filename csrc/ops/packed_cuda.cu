// Products with packed weights on CUDA: tensor cores multiply words as panels hold them.
//
// A warp takes two panels, a row of the tensor core's matrix being an output and a column a row of
// x: 16 bytes of a line are the words of four outputs, two for each of two matrices. Which words
// meet is free as long as both sides agree: lane t of four takes words 2t and 2t + 1 of eight, of
// the panel and of x. The warps of a block share out the words along K, and their sums are added up
// in order, so that a row's result depends on K alone, not on the rows beside it.
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "ops/epilogue_cuda.h"
#include "ops/packed.h"

namespace llmcore::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kTileRows = 8;                              // of x, in a tensor core's matrix
constexpr int kOutputs = 2 * static_cast<int>(kPanelOutputs);  // of a block
constexpr int kPairWords = 8;                             // of an output, in a product of tensor cores

struct PackedArgs {
  const uint32_t* weights;
  const uint32_t* x;      // rounded, [rows, x_words], zero beyond the depth
  const float* x_scales;  // [rows]; not of bfloat16
  int64_t rows, outputs, depth, panel_words, x_words, steps;
  Epilogue to;
};

// Sums of a tile: of outputs 4q, 4q + 1 and of 4q + 2, 4q + 3, as mma_…() lays them out.
template <class T>
using Sums = T[2][4];

__device__ __forceinline__ uint4 load_line(const uint4* line, bool valid) {
  return valid ? __ldg(line) : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ void load_pair(const uint32_t* words, uint32_t (&pair)[2]) {
  const uint2 both = __ldg(reinterpret_cast<const uint2*>(words));
  pair[0] = both.x;
  pair[1] = both.y;
}

// line(l) of a panel is 4 uint4 on; `panel` is at a lane's four outputs.
constexpr int kLine = static_cast<int>(kPanelOutputs) / 4;

// bfloat16 and int8: a step is eight words of each output.
template <class Format, int kTiles>
__device__ __forceinline__ void multiply_words(const uint4* panel, int64_t step, int64_t lines,
                                               const uint32_t* const (&x)[kTiles], int t,
                                               Sums<typename Format::Sum> (&sums)[kTiles]) {
  const int64_t word = step * kPairWords + 2 * t;
  const uint4 first = load_line(panel + word * kLine, word < lines);
  const uint4 second = load_line(panel + (word + 1) * kLine, word + 1 < lines);
  constexpr uint32_t kFlip = Format::kFlip;
  const uint32_t a[2][4] = {
      {first.x ^ kFlip, first.y ^ kFlip, second.x ^ kFlip, second.y ^ kFlip},
      {first.z ^ kFlip, first.w ^ kFlip, second.z ^ kFlip, second.w ^ kFlip}};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    uint32_t b[2];
    load_pair(x[tile] + word, b);
    Format::multiply(sums[tile][0], a[0], b);
    Format::multiply(sums[tile][1], a[1], b);
  }
}

struct BFloat16Panels {
  using Sum = float;
  static constexpr DType kFormat = DType::kPackedBFloat16;
  static constexpr int kStepWords = kPairWords, kWeights = 2;  // of a step; in a word of x
  static constexpr uint32_t kFlip = 0;

  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_bfloat16(d, a, b);
  }
  template <int kTiles>
  static __device__ __forceinline__ void step(const uint4* panel, int64_t step, int64_t depth,
                                              const uint32_t* const (&x)[kTiles], int t,
                                              Sums<float> (&sums)[kTiles]) {
    multiply_words<BFloat16Panels>(panel, step, (depth + 1) / 2, x, t, sums);
  }
  static __device__ __forceinline__ float value(float sum, const uint32_t*, int64_t, const float*) {
    return sum;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t, int64_t k) {
    return __uint_as_float(lane[k / 2 * kPanelOutputs] >> (k % 2 * 16) << 16);
  }
};

struct Int8Panels {
  using Sum = int;
  static constexpr DType kFormat = DType::kPackedInt8;
  static constexpr int kStepWords = kPairWords, kWeights = 4;
  static constexpr uint32_t kFlip = 0x80808080u;  // from q + 128 to q

  static __device__ __forceinline__ void multiply(int (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_int8(d, a, b);
  }
  template <int kTiles>
  static __device__ __forceinline__ void step(const uint4* panel, int64_t step, int64_t depth,
                                              const uint32_t* const (&x)[kTiles], int t,
                                              Sums<int> (&sums)[kTiles]) {
    multiply_words<Int8Panels>(panel, step, (depth + 3) / 4, x, t, sums);
  }
  static __device__ __forceinline__ float scale(const uint32_t* lane, int64_t depth) {
    return __uint_as_float(lane[(depth + 3) / 4 * kPanelOutputs]);
  }
  static __device__ __forceinline__ float value(int sum, const uint32_t* lane, int64_t depth,
                                                const float* x_scale) {
    return static_cast<float>(sum) * scale(lane, depth) * *x_scale;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t depth, int64_t k) {
    const uint32_t code = lane[k / 4 * kPanelOutputs] >> (k % 4 * 8) & 255u;
    return (static_cast<float>(code) - 128.0f) * scale(lane, depth);
  }
};

// A step is two groups. The integers of a group are summed as 16 q, what half a byte is in the
// upper half of one.
struct Int4Panels {
  using Sum = float;
  static constexpr DType kFormat = DType::kPackedInt4;
  static constexpr int kStepWords = 2 * kPairWords, kWeights = 4;
  static constexpr int kChunkLines = 9, kGroupLines = 4, kGroupWeights = 2 * kInt4Group;

  static __device__ __forceinline__ uint32_t low(uint32_t bytes) {
    return (bytes << 4 & 0xf0f0f0f0u) ^ 0x80808080u;
  }
  static __device__ __forceinline__ uint32_t high(uint32_t bytes) {
    return (bytes & 0xf0f0f0f0u) ^ 0x80808080u;
  }
  static __device__ __forceinline__ float scale(uint32_t both, int group) {
    return __uint_as_float(group == 0 ? both << 16 : both & 0xffff0000u);
  }

  template <int kTiles>
  static __device__ __forceinline__ void step(const uint4* panel, int64_t step, int64_t,
                                              const uint32_t* const (&x)[kTiles], int t,
                                              Sums<float> (&sums)[kTiles]) {
    const uint4* const chunk = panel + step * kChunkLines * kLine;
    const uint4 scales = __ldg(chunk + 2 * kGroupLines * kLine);
    uint4 bytes[2];
#pragma unroll
    for (int group = 0; group < 2; ++group)
      bytes[group] = __ldg(chunk + (group * kGroupLines + t) * kLine);
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const uint4 w = bytes[group];
      const uint32_t a[2][4] = {{low(w.x), low(w.y), high(w.x), high(w.y)},
                                {low(w.z), low(w.w), high(w.z), high(w.w)}};
      const float scale_of[2][2] = {{scale(scales.x, group), scale(scales.y, group)},
                                    {scale(scales.z, group), scale(scales.w, group)}};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t b[2];
        load_pair(x[tile] + step * kStepWords + group * kPairWords + 2 * t, b);
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
  static __device__ __forceinline__ float value(float sum, const uint32_t*, int64_t,
                                                const float* x_scale) {
    return sum * *x_scale;
  }
  static __device__ __forceinline__ float weight(const uint32_t* lane, int64_t, int64_t k) {
    const uint32_t* const chunk = lane + k / kGroupWeights * kChunkLines * kPanelOutputs;
    const int64_t i = k % kGroupWeights;
    const uint32_t code = chunk[i / 8 * kPanelOutputs] >> (i % 4 * 8 + i / 4 % 2 * 4) & 15u;
    return (static_cast<float>(code) - 8.0f) *
           scale(chunk[2 * kGroupLines * kPanelOutputs], static_cast<int>(i / kInt4Group));
  }
};

template <class Visit>
void with_format(DType format, Visit visit) {
  if (format == DType::kPackedBFloat16) return visit(BFloat16Panels{});
  if (format == DType::kPackedInt8) return visit(Int8Panels{});
  visit(Int4Panels{});
}

// ---- The product

template <class Format, class T, int kTiles>
__global__ void __launch_bounds__(kThreads) multiply_panels(PackedArgs args) {
  using Sum = typename Format::Sum;
  __shared__ Sum parts[kWarps][kTileRows][kOutputs];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTiles * kTileRows;
  const int64_t last_panel = packed_panels(args.outputs) - 1;
  const auto panel_at = [&](int second) {
    const int64_t panel = 2 * static_cast<int64_t>(blockIdx.x) + second;
    return args.weights + (panel < last_panel ? panel : last_panel) * args.panel_words;
  };
  const uint4* const panel = reinterpret_cast<const uint4*>(panel_at(g / 4)) + g % 4;
  const uint32_t* x[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int64_t row = first_row + tile * kTileRows + g;
    x[tile] = args.x + (row < args.rows ? row : args.rows - 1) * args.x_words;
  }

  Sums<Sum> sums[kTiles] = {};
  const int64_t share = blocks_of(args.steps, kWarps), begin = warp * share;
  const int64_t end = begin + share < args.steps ? begin + share : args.steps;
  [[maybe_unused]] constexpr int kUnroll = kTiles == 1 ? 4 : kTiles == 2 ? 2 : 1;  // loads in flight
#pragma unroll kUnroll
  for (int64_t step = begin; step < end; ++step)
    Format::step(panel, step, args.depth, x, t, sums);

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        parts[warp][2 * t + i % 2][4 * g + 2 * half + i / 2] = sums[tile][half][i];
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x) / kOutputs;
    const int o = static_cast<int>(threadIdx.x) % kOutputs;
    Sum total = parts[0][i][o];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) total += parts[w][i][o];
    const int64_t row = first_row + tile * kTileRows + i;
    const int64_t output = static_cast<int64_t>(blockIdx.x) * kOutputs + o;
    if (row < args.rows && output < args.outputs) {
      const uint32_t* const of = panel_at(o / static_cast<int>(kPanelOutputs)) + o % kPanelOutputs;
      float y[1] = {Format::value(total, of, args.depth, args.x_scales + row)};
      finish<T>(args.to, row * args.outputs + output, output, y);
    }
  }
}
static_assert(kThreads == kTileRows * kOutputs);

// ---- The rounding of x

template <class X>
__global__ void round_to_bfloat16(const X* x, uint32_t* words, int64_t count, int64_t depth,
                                  int64_t row_words) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const int64_t k = i % row_words * 2;
  const X* const from = x + i / row_words * depth + k;
  words[i] = pack_bfloat16(k < depth ? as_float(from[0]) : 0.0f,
                           k + 1 < depth ? as_float(from[1]) : 0.0f);
}

// To the nearest integers from -127 to 127, a block a row. A scale is NaN where the row has an
// infinity or a NaN.
template <class X>
__global__ void __launch_bounds__(kThreads)
    round_to_int8(const X* x, uint32_t* words, float* scales, int64_t depth, int64_t row_words) {
  __shared__ uint32_t shared[kWarp];
  const X* const row = x + static_cast<int64_t>(blockIdx.x) * depth;
  uint32_t largest = 0;  // magnitudes as integers: NaN is above infinity, that above all others
  for (int64_t k = threadIdx.x; k < depth; k += kThreads) {
    const uint32_t magnitude = __float_as_uint(as_float(row[k])) & 0x7fffffffu;
    largest = largest > magnitude ? largest : magnitude;
  }
  largest = block_reduce(largest, shared, 0u,
                         [](uint32_t a, uint32_t b) { return a > b ? a : b; });
  const float most = __uint_as_float(largest);
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  if (threadIdx.x == 0) scales[blockIdx.x] = most / 127.0f + (most - most);
  constexpr float kRounder = 0x1.8p23f;  // added to this, a small integer is what the lowest bits hold
  for (int64_t w = threadIdx.x; w < row_words; w += kThreads) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (4 * w + i < depth)
        word |= (__float_as_uint(fmaf(as_float(row[4 * w + i]), inverse, kRounder)) & 255u)
                << (8 * i);
    words[blockIdx.x * row_words + w] = word;
  }
}

template <class Format>
int64_t steps_of(int64_t depth) {
  return blocks_of(depth, Format::kStepWords * Format::kWeights);
}

template <class Format>
void multiply(const Context& context, const MatmulArgs& args) {
  const int64_t rows = args.a.dim(0), depth = args.a.dim(1), outputs = args.c.dim(1);
  const int64_t steps = steps_of<Format>(depth), x_words = steps * Format::kStepWords;
  auto* const words = args.scratch.as<uint32_t>();
  auto* const scales = reinterpret_cast<float*>(words + rows * x_words);
  with_type(args.a.dtype, [&](auto tag) {
    using X = decltype(tag);
    if constexpr (Format::kFormat == DType::kPackedBFloat16)
      launch_each(context, round_to_bfloat16<X>, rows * x_words, args.a.as<X>(), words,
                  rows * x_words, depth, x_words);
    else
      launch(context, round_to_int8<X>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0,
             args.a.as<X>(), words, scales, depth, x_words);
  });
  const PackedArgs call{.weights = args.b.as<uint32_t>(),
                        .x = words,
                        .x_scales = scales,
                        .rows = rows,
                        .outputs = outputs,
                        .depth = depth,
                        .panel_words = panel_bytes(Format::kFormat, depth) / 4,
                        .x_words = x_words,
                        .steps = steps,
                        .to = Epilogue(args)};
  with_type(args.c.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto start = [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      const dim3 grid(static_cast<unsigned>(blocks_of(outputs, kOutputs)),
                      static_cast<unsigned>(blocks_of(rows, kTiles * kTileRows)));
      launch(context, multiply_panels<Format, T, kTiles>, grid, dim3(kThreads), 0, call);
    };
    if (rows <= kTileRows)
      start(std::integral_constant<int, 1>{});
    else if (rows <= 2 * kTileRows)
      start(std::integral_constant<int, 2>{});
    else if (rows <= 4 * kTileRows)
      start(std::integral_constant<int, 4>{});
    else
      start(std::integral_constant<int, 8>{});
  });
}

int64_t scratch_bytes(const MatmulArgs& args) {
  int64_t words = 0;
  with_format(args.b.dtype, [&]<class Format>(Format) {
    words = steps_of<Format>(args.a.dim(1)) * Format::kStepWords;
  });
  return args.a.dim(0) * (words + 1) * 4;
}

void matmul(const Context& context, const MatmulArgs& args) {
  with_format(args.b.dtype, [&]<class Format>(Format) { multiply<Format>(context, args); });
}

// ---- Rows

template <class Format>
__global__ void unpack(const uint32_t* weights, const int32_t* rows, float* out, int64_t depth,
                       int64_t panel_words) {
  const int64_t row = rows[blockIdx.x];
  const uint32_t* const lane =
      weights + row / kPanelOutputs * panel_words + row % kPanelOutputs;
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
                                      .matmul = matmul};

}  // namespace llmcore::cuda
