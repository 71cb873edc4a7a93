// Formats of packed weights for tensor cores: how a lane loads its words of a panel, and multiplies
// them.
#pragma once

#include "cuda/launch.h"
#include "ops/packed.h"

namespace llmcore::cuda {

constexpr int kPanel = static_cast<int>(kPanelOutputs);
constexpr int kPairWords = 8;  // of an output, in a product of tensor cores

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
  static constexpr int kBatch = 8;  // steps whose words a warp asks for together
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
  static constexpr int kBatch = 4;
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
  static constexpr int kStepWords = 2 * kPairWords, kWeights = 4, kBatch = 4;
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

}  // namespace llmcore::cuda
