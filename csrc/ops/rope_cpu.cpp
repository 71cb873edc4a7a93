// Rotary position embedding on the CPU: every head of a row with the one row of cosines and sines.
#include "core/parallel.h"
#include "ops/rope.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;

LLMCORE_INLINE Vec load_up_to(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, count);
}
LLMCORE_INLINE void store_up_to(float* p, Vec v, int64_t count) {
  if (count >= kLanes)
    store(p, v);
  else
    store_partial(p, v, count);
}

// Pairs (i, i + half).
void rotate_halves(const float* x, float* y, const float* cos, const float* sin, float sign,
                   int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const Vec a = load_up_to(x + i, n), b = load_up_to(x + half + i, n);
    const Vec c = load_up_to(cos + i, n), s = load_up_to(sin + i, n) * sign;
    store_up_to(y + i, a * c - b * s, n);
    store_up_to(y + half + i, b * c + a * s, n);
  }
}

// Pairs (2i, 2i + 1).
void rotate_neighbours(const float* x, float* y, const float* cos, const float* sin, float sign,
                       int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    const float c = cos[i], s = sin[i] * sign;
    y[2 * i] = a * c - b * s;
    y[2 * i + 1] = b * c + a * s;
  }
}

void rotate(const Context&, const RopeArgs& args) {
  const int64_t rotary = args.rotary_dim, half = rotary / 2;
  const float sign = args.inverse ? -1.0f : 1.0f;
  const auto* positions = args.positions.as<int32_t>();
  parallel_chunks(args.batch * args.rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* cos = args.cos.f32() + positions[n] * half;
      const float* sin = args.sin.f32() + positions[n] * half;
      for (int64_t h = 0; h < args.heads; ++h) {
        const float* x = args.x.at(n / args.rows, n % args.rows, h);
        float* y = args.y.at(n / args.rows, n % args.rows, h);
        if (args.interleaved)
          rotate_neighbours(x, y, cos, sin, sign, half);
        else
          rotate_halves(x, y, cos, sin, sign, half);
        if (x != y)
          __builtin_memcpy(y + rotary, x + rotary, (args.head_dim - rotary) * sizeof(float));
      }
    }
  });
}

}  // namespace

extern const RopeKernels rope_kernels;
const RopeKernels rope_kernels = {.rotate = rotate};

}  // namespace llmcore::LLMCORE_ISA
