// Products of few rows on CUDA, y = x W^T: all that counts is how fast the weights are read. A warp
// has some outputs of all rows. Weights do not depend on the kernel ahead: they come to the caches
// while that still runs, the first of them to registers while x is staged.
#pragma once

#include "cuda/launch.h"
#include "ops/epilogue_cuda.h"
#include "ops/row_norm_cuda.h"

namespace llmcore::cuda {

// Whether a product is one of them. More rows of narrow weights are for tensor cores.
inline bool is_of_few_rows(const MatmulArgs& args) {
  const int64_t most = args.b.dtype == DType::kBFloat16 ? 8 : 16;
  return args.c.rank == 2 && args.transpose_b && !args.transpose_a && args.a_stride == 0 &&
         args.c.dim(0) <= most;
}

namespace few_rows {

constexpr int kThreads = 128;
// So many outputs keep a GPU busy even if a warp takes several of a single row.
constexpr int64_t kManyOutputs = 1 << 14;
constexpr int kMostOutputs = 4;

// Outputs of a warp: the more rows, the more products for each number of x that is read.
constexpr int outputs_of_warp(int rows) {
  return rows <= 2 ? 1 : rows == 4 ? 2 : kMostOutputs;
}
// Elements of each row that stand in shared memory together.
constexpr int staged_depth(int rows) {
  return (rows <= 4 ? 4096 : 8192) / rows;
}

// The kernel for at least so many rows.
template <class Visit>
void with_rows(int64_t rows, Visit visit) {
  if (rows <= 1) return visit(std::integral_constant<int, 1>{});
  if (rows <= 2) return visit(std::integral_constant<int, 2>{});
  if (rows <= 4) return visit(std::integral_constant<int, 4>{});
  if (rows <= 8) return visit(std::integral_constant<int, 8>{});
  return visit(std::integral_constant<int, 16>{});
}

struct Arguments {
  const void *x, *w;
  int64_t rows, outputs, depth;
  bool narrow_x, round_x;  // x is bfloat16, or is rounded to it
  NormOfRow norm;          // where rows are staged whole
  Epilogue to;
};

__device__ __forceinline__ float rounded(float x) {
  return as_float(from_float<BFloat16>(x));
}

// Where element k of a row is staged. A lane reads packs of W in parts of 4: what lanes read
// together lies together.
template <class W>
__device__ __forceinline__ int staged_at(int k) {
  if constexpr (kPack<W> == 4) return k;
  constexpr int kBoth = 2 * 4 * kWarp;
  return k / kBoth * kBoth + k / 4 % 2 * (4 * kWarp) + k % kBoth / 8 * 4 + k % 4;
}

template <class W, int kOutputs>
__device__ __forceinline__ void prefetch_operands(const Arguments& args) {
  if (threadIdx.x == 0) args.norm.prefetch_parameters(args.depth);
  if (threadIdx.x % kWarp != 0) return;
  const int64_t first = thread_index() / kWarp * kOutputs, left = args.outputs - first;
  if (left <= 0) return;
  const int64_t outputs = left < kOutputs ? left : kOutputs;
  prefetch(static_cast<const W*>(args.w) + first * args.depth,
           outputs * args.depth * int64_t{sizeof(W)});
  if (args.to.bias != nullptr) prefetch(args.to.bias + first, outputs * int64_t{sizeof(float)});
}

// A lane multiplies packs 32 apart, in ascending order; then the lanes are added up. This depends
// on the depth alone.
template <class W, class T, bool kRoundW, int kRows, int kOutputs>
__global__ void __launch_bounds__(kThreads, kRows* kOutputs == 1 ? 6 : 2) multiply(Arguments args) {
  prefetch_operands<W, kOutputs>(args);
  take_turn();
  constexpr int kDepth = staged_depth(kRows), kStep = kWarp * kPack<W>;
  constexpr int kSteps = kMostOutputs / kOutputs;  // whose weights come together
  static_assert(kDepth % (kSteps * kStep) == 0);
  __shared__ __align__(16) float x[kRows][kDepth];
  __shared__ float sums_of_warps[kWarp];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int64_t first = thread_index() / kWarp * kOutputs, depth = args.depth;
  const bool aligned = packs<W>(args.w, depth);
  const W* w[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const int64_t output = first + o < args.outputs ? first + o : args.outputs - 1;
    w[o] = static_cast<const W*>(args.w) + output * depth + lane * kPack<W>;
  }
  uint4 coming[kSteps][kOutputs] = {};
  const auto fetch = [&](int64_t begin) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
        if (aligned && begin + s * kStep + lane * kPack<W> < depth)
          coming[s][o] = *reinterpret_cast<const uint4*>(w[o] + begin + s * kStep);
  };
  fetch(0);
  // A lane finishes an output: what is added to it comes early, too.
  const bool finishes = lane < kOutputs && first + lane < args.outputs;
  Terms<1> terms[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (finishes && r < args.rows)
      terms[r] = terms_of<T, 1>(args.to, r * args.to.stride + first + lane, first + lane);

  const auto stage = [&]<class X>(const X* from, int row, int count) {
    const bool whole = packs<X>(from, args.depth);
    const int end = (count + kPack<W> - 1) / kPack<W> * kPack<W>;  // beyond the row: zeros
    for (int k = thread * kPack<X>; k < end; k += kThreads * kPack<X>) {
      float pack[kPack<X>];
      load_up_to(from + k, count - k, whole, pack);
#pragma unroll
      for (int i = 0; i < kPack<X>; i += 4) {
        float part[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          part[j] = args.round_x && !args.norm.wanted() ? rounded(pack[i + j]) : pack[i + j];
        store_pack(&x[row][staged_at<W>(k + i)], part);
      }
    }
  };
  const auto normalise = [&](int count) {
    constexpr int kCount = 8;
    const auto with = [&](int k) { return args.norm.parameters<kCount>(k, count); };
    auto parameters = with(thread * kCount);  // before they are waited for
    __syncthreads();
    for (int r = 0; r < kRows && r < args.rows; ++r) {
      const auto moments =
          args.norm.moments(count, sums_of_warps, [&](int k) { return x[r][staged_at<W>(k)]; });
      for (int k = thread * kCount; k < count; k += kThreads * kCount) {
        if (count > kThreads * kCount) parameters = with(k);
        float y[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) y[i] = k + i < count ? x[r][staged_at<W>(k + i)] : 0.0f;
        NormOfRow::apply(moments, parameters, y);
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          if (k + i < count) x[r][staged_at<W>(k + i)] = args.round_x ? rounded(y[i]) : y[i];
      }
    }
  };
  float sums[kRows][kOutputs] = {};
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    const int count = static_cast<int>(depth - begin < kDepth ? depth - begin : kDepth);
    if (begin > 0) __syncthreads();
    for (int r = 0; r < kRows && r < args.rows; ++r) {
      const int64_t from = r * depth + begin;
      if (args.narrow_x)
        stage(static_cast<const BFloat16*>(args.x) + from, r, count);
      else
        stage(static_cast<const float*>(args.x) + from, r, count);
    }
    if (args.norm.wanted()) normalise(count);
    __syncthreads();
    for (int k = 0; k < count; k += kSteps * kStep) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int at = k + s * kStep + lane * kPack<W>;
        if (at >= count) continue;
        float weights[kOutputs][kPack<W>];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
          if (aligned)
            open_pack<W>(coming[s][o], weights[o]);
          else
            load_up_to(w[o] + begin + k + s * kStep, count - at, false, weights[o]);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int part = 0; part < kPack<W>; part += 4) {
            float four[4];
            load_pack(&x[r][staged_at<W>(at + part)], four);
#pragma unroll
            for (int o = 0; o < kOutputs; ++o)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const float weight = weights[o][part + i];
                sums[r][o] = fmaf(kRoundW ? rounded(weight) : weight, four[i], sums[r][o]);
              }
          }
      }
      fetch(begin + k + kSteps * kStep);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float mine[1] = {};
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const float sum = warp_sum(sums[r][o]);
      if (lane == o) mine[0] = sum;
    }
    if (finishes && r < args.rows)
      finish<T>(args.to, r * args.to.stride + first + lane, terms[r], mine);
  }
}

template <class W, bool kRoundW>
void start(const Context& context, const Arguments& args, DType c) {
  with_type(c, [&](auto tag) {
    using T = decltype(tag);
    with_rows(args.rows, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if constexpr (sizeof(W) == sizeof(float) || kRows <= 8) {
        const auto run = [&]<int kOutputs>(std::integral_constant<int, kOutputs>) {
          const int64_t warps = blocks_of(args.outputs, kOutputs);
          launch(context, multiply<W, T, kRoundW, kRows, kOutputs>,
                 dim3(static_cast<unsigned>(blocks_of(warps, kThreads / kWarp))), dim3(kThreads), 0,
                 args);
        };
        if (args.outputs >= kManyOutputs)
          run(std::integral_constant<int, kMostOutputs>{});
        else
          run(std::integral_constant<int, outputs_of_warp(kRows)>{});
      }
    });
  });
}

}  // namespace few_rows

// Rows that stand in shared memory as a whole are normalised there.
inline bool normalises_few_rows(const MatmulArgs& args) {
  bool whole = false;
  few_rows::with_rows(args.c.dim(0),
                      [&](auto rows) { whole = args.a.dim(1) <= few_rows::staged_depth(rows); });
  return is_of_few_rows(args) && whole;
}

// `bfloat16`: operands are rounded to it.
inline void multiply_few_rows(const Context& context, const MatmulArgs& args, bool bfloat16) {
  const bool narrow_w = args.b.dtype == DType::kBFloat16;
  const bool narrow = bfloat16 || narrow_w || args.a.dtype == DType::kBFloat16;
  const few_rows::Arguments call{.x = args.a.data,
                                 .w = args.b.data,
                                 .rows = args.c.dim(0),
                                 .outputs = args.c.dim(1),
                                 .depth = args.a.dim(1),
                                 .narrow_x = args.a.dtype == DType::kBFloat16,
                                 .round_x = narrow,
                                 .norm = NormOfRow(args.norm),
                                 .to = Epilogue(args)};
  if (narrow_w)
    few_rows::start<BFloat16, false>(context, call, args.c.dtype);
  else if (narrow)
    few_rows::start<float, true>(context, call, args.c.dtype);
  else
    few_rows::start<float, false>(context, call, args.c.dtype);
}

}  // namespace llmcore::cuda
