// Rotary position embedding on CUDA: threads side by side take the pairs of a row's heads.
#include "ops/rope.h"

#include <algorithm>

#include "cuda/floats.h"
#include "cuda/launch.h"

namespace llmcore::cuda {
namespace {

constexpr int kThreads = 256;

// Which 16-byte accesses are possible.
struct Aligned {
  bool pairs, tables, rest;
};

// kPack<T> pairs: two packs half a head apart, or side by side.
template <class T, bool kInterleaved>
__device__ __forceinline__ void rotate_pairs(const T* x, T* y, const float* cos, const float* sin,
                                             float sign, int64_t pair, int64_t half,
                                             Aligned aligned) {
  constexpr int kCount = kPack<T>;
  const int64_t first = kInterleaved ? 2 * pair : pair, left = half - pair;
  const int64_t second = kInterleaved ? first + kCount : half + pair;
  const int64_t first_left = kInterleaved ? 2 * left : left;
  const int64_t second_left = kInterleaved ? 2 * left - kCount : left;
  float values[2][kCount], c[kCount], s[kCount];
  load_up_to(x + first, first_left, aligned.pairs, values[0]);
  load_up_to(x + second, second_left, aligned.pairs, values[1]);
  load_up_to(cos + pair, left, aligned.tables, c);
  load_up_to(sin + pair, left, aligned.tables, s);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float& a = kInterleaved ? values[2 * i / kCount][2 * i % kCount] : values[0][i];
    float& b = kInterleaved ? values[2 * i / kCount][2 * i % kCount + 1] : values[1][i];
    const float rotated = a * c[i] - b * (s[i] * sign);
    b = b * c[i] + a * (s[i] * sign);
    a = rotated;
  }
  store_up_to(y + first, values[0], first_left, aligned.pairs);
  store_up_to(y + second, values[1], second_left, aligned.pairs);
}

// threadIdx.y is a row of the block's.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rotate_kernel(RopeArgs args, Aligned aligned) {
  take_turn();
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= args.batch * args.rows) return;
  const int64_t b = n / args.rows, t = n - b * args.rows;
  const int64_t half = args.rotary_dim / 2, position = args.positions.as<int32_t>()[n];
  const float* cos = args.cos.f32() + position * half;
  const float* sin = args.sin.f32() + position * half;
  const float sign = args.inverse ? -1.0f : 1.0f;
  const int heads = static_cast<int>(args.heads);
  const int units = static_cast<int>(blocks_of(half, kPack<T>));
  for (int i = threadIdx.x; i < heads * units; i += blockDim.x) {
    const int head = i / units;
    rotate_pairs<T, kInterleaved>(args.x.at<T>(b, t, head), args.y.at<T>(b, t, head), cos, sin,
                                  sign, static_cast<int64_t>(i - head * units) * kPack<T>, half,
                                  aligned);
  }
  if (args.x.data == args.y.data) return;
  const int64_t rest = args.head_dim - args.rotary_dim;
  const int copies = static_cast<int>(blocks_of(rest, kPack<T>));
  for (int i = threadIdx.x; i < heads * copies; i += blockDim.x) {
    const int head = i / copies;
    const int64_t column = static_cast<int64_t>(i - head * copies) * kPack<T>;
    const int64_t from = args.rotary_dim + column;
    float values[kPack<T>];
    load_up_to(args.x.at<T>(b, t, head) + from, rest - column, aligned.rest, values);
    store_up_to(args.y.at<T>(b, t, head) + from, values, rest - column, aligned.rest);
  }
}

template <class T>
bool packs_of(const HeadView& view, int64_t begin) {
  return packs<T>(view.data, view.batch_stride | view.row_stride | view.head_stride | begin);
}

void rotate(const Context& context, const RopeArgs& args) {
  const int64_t half = args.rotary_dim / 2;
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    const auto both = [&](int64_t begin) {
      return packs_of<T>(args.x, begin) && packs_of<T>(args.y, begin);
    };
    const Aligned aligned = {
        .pairs = both(args.interleaved ? 0 : half),
        .tables = packs<float>(args.cos.data, half) && packs<float>(args.sin.data, half),
        .rest = both(args.rotary_dim)};
    const int64_t work = args.heads * blocks_of(half, kPack<T>);
    const auto across = static_cast<unsigned>(std::min<int64_t>(work, kThreads));
    const unsigned rows = kThreads / across;
    with_bool(args.interleaved, [&](auto interleaved) {
      launch(context, rotate_kernel<T, interleaved.value>,
             dim3(static_cast<unsigned>(blocks_of(args.batch * args.rows, rows))),
             dim3(across, rows), 0, args, aligned);
    });
  });
}

}  // namespace

extern const RopeKernels rope_kernels;
const RopeKernels rope_kernels = {.rotate = rotate};

}  // namespace llmcore::cuda
