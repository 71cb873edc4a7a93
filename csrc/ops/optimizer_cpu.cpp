// AdamW and the sum of squares on the CPU: one pass each, at the speed of memory.
#include "core/parallel.h"
#include "ops/optimizer.h"
#include "simd/vec.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// 256 KiB of each of the four streams: long enough for the hardware prefetchers.
constexpr int64_t kElementsPerTask = int64_t{1} << 16;

LLMCORE_INLINE Vec square_root(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
}

struct AdamWVecs {
  Vec param, m, v;
};

LLMCORE_INLINE AdamWVecs adamw_step(const AdamWFactors& f, Vec param, Vec grad, Vec m, Vec v) {
  grad *= f.grad_scale;
  param *= f.keep;
  m = m * f.beta1 + grad * f.one_minus_beta1;
  v = v * f.beta2 + grad * grad * f.one_minus_beta2;
  const Vec denominator = square_root(v) / f.root_correction + f.eps;
  return {param - f.step_size * (m / denominator), m, v};
}

void update(const AdamWArgs& args, AdamWFactors factors, const FlatPart& part) {
  if (!part.decay) factors.keep = 1.0f;
  float* param = args.param.f32() + part.begin;
  const float* grad = args.grad.f32() + part.begin;
  float* m = args.m.f32() + part.begin;
  float* v = args.v.f32() + part.begin;
  parallel_chunks(part.end - part.begin, kElementsPerTask, [&](int64_t begin, int64_t end, int) {
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const AdamWVecs next =
          adamw_step(factors, load(param + i), load(grad + i), load(m + i), load(v + i));
      store(param + i, next.param);
      store(m + i, next.m);
      store(v + i, next.v);
    }
    if (const int64_t rest = end - i; rest > 0) {
      const AdamWVecs next =
          adamw_step(factors, load_partial(param + i, rest), load_partial(grad + i, rest),
                     load_partial(m + i, rest), load_partial(v + i, rest));
      store_partial(param + i, next.param, rest);
      store_partial(m + i, next.m, rest);
      store_partial(v + i, next.v, rest);
    }
  });
}

void adamw(const Context&, const AdamWArgs& args) {
  if (args.state != nullptr && args.state->skipped) return;
  const AdamWFactors factors = args.state != nullptr ? args.state->factors : args.factors;
  if (args.parts.count == 0) update(args, factors, {0, args.param.numel(), true});
  for (int64_t i = 0; i < args.parts.count; ++i) update(args, factors, args.parts.first[i]);
}

using VecD [[gnu::vector_size(kVecBytes)]] = double;
using VecHalf [[gnu::vector_size(kVecBytes / 2)]] = float;
constexpr int kDoubleLanes = kVecBytes / 8;
constexpr int kSums = 4;  // independent, to hide the latency of the additions

LLMCORE_INLINE VecD load_as_double(const float* p) {
  VecHalf half;
  __builtin_memcpy(&half, p, sizeof(half));
  return __builtin_convertvector(half, VecD);
}

double block_square_sum(const float* x, int64_t count) {
  VecD sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kDoubleLanes <= count; i += kSums * kDoubleLanes)
    for (int k = 0; k < kSums; ++k) {
      const VecD value = load_as_double(x + i + k * kDoubleLanes);
      sums[k] += value * value;
    }
  const VecD folded = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0.0;
  for (int lane = 0; lane < kDoubleLanes; ++lane) sum += folded[lane];
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void add_squares(const SquareSumArgs& args, int64_t first, int64_t last) {
  const float* x = args.x.f32() + first;
  const int64_t count = last - first;
  parallel_chunks(count, kSquareSumBlock, [&](int64_t begin, int64_t end, int) {
    args.partial[begin / kSquareSumBlock] = block_square_sum(x + begin, end - begin);
  });
  double sum = 0.0;
  for (int64_t block = 0; block * kSquareSumBlock < count; ++block) sum += args.partial[block];
  *args.sum += sum;
}

void square_sum(const Context&, const SquareSumArgs& args) {
  const FlatParts& parts = args.parts;
  if (parts.count == 0) add_squares(args, 0, args.x.numel());
  for (int64_t i = 0; i < parts.count; ++i) {
    const int64_t begin = parts.first[i].begin;
    while (i + 1 < parts.count && parts.first[i + 1].begin == parts.first[i].end) ++i;
    add_squares(args, begin, parts.first[i].end);
  }
}

void begin(const Context&, StepState* state) {
  *state = {.updates = state->updates};
}

void weighted_sum(const Context&, const WeightedSumArgs& args) {
  double sum = 0.0, weight = 0.0;
  for (int64_t r = 0; r < args.losses.numel(); ++r) {
    sum += static_cast<double>(args.losses.f32()[r]) * static_cast<double>(args.weights.f32()[r]);
    weight += static_cast<double>(args.weights.f32()[r]);
  }
  args.state->loss_sum += sum;
  args.state->weight += weight;
}

void decide_update(const Context&, const DecideArgs& args) {
  decide(*args.settings, *args.state);
}

}  // namespace

extern const OptimizerKernels optimizer_kernels;
const OptimizerKernels optimizer_kernels = {.adamw = adamw,
                                            .square_sum = square_sum,
                                            .begin = begin,
                                            .weighted_sum = weighted_sum,
                                            .decide = decide_update};

}  // namespace llmcore::LLMCORE_ISA
