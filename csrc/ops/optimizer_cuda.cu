// AdamW, the sum of squares, and what a training step decides from it, on CUDA: nobody waits.
#include "ops/optimizer.h"

#include "cuda/floats.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"

namespace llmcore::cuda {
namespace {

constexpr int kPackFloats = kPack<float>;
constexpr int kAdamWThreads = 512;
constexpr int kSumThreads = 1024;

// The part of n elements that this block takes.
__device__ __forceinline__ FlatPart part_of(const FlatParts& parts, int64_t n) {
  if (parts.count > 0) return parts.first[blockIdx.x];
  const int64_t begin = blockIdx.x * kFlatPart;
  return {begin, begin + kFlatPart < n ? begin + kFlatPart : n, true};
}
int64_t blocks_for(const FlatParts& parts, int64_t n) {
  return parts.count > 0 ? parts.count : blocks_of(n, kFlatPart);
}

// `aligned`: where the part begins at a whole pack, so do all tensors there.
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_kernel(AdamWArgs args, int64_t n, bool aligned) {
  take_turn();
  const FlatPart part = part_of(args.parts, n);
  AdamWFactors f = args.factors;
  if (args.state != nullptr) {
    if (args.state->skipped) return;
    f = args.state->factors;
  }
  if (!part.decay) f.keep = 1.0f;
  aligned = aligned && part.begin % kPackFloats == 0;
  for (int64_t at = part.begin + threadIdx.x * kPackFloats; at < part.end;
       at += kAdamWThreads * kPackFloats) {
    const int64_t count = part.end - at;
    float param[kPackFloats], grad[kPackFloats], m[kPackFloats], v[kPackFloats];
    load_up_to(args.param.f32() + at, count, aligned, param);
    load_up_to(args.grad.f32() + at, count, aligned, grad);
    load_up_to(args.m.f32() + at, count, aligned, m);
    load_up_to(args.v.f32() + at, count, aligned, v);
#pragma unroll
    for (int i = 0; i < kPackFloats; ++i) {
      const float g = grad[i] * f.grad_scale;
      m[i] = m[i] * f.beta1 + g * f.one_minus_beta1;
      v[i] = v[i] * f.beta2 + g * g * f.one_minus_beta2;
      const float denominator = sqrtf(v[i]) / f.root_correction + f.eps;
      param[i] = param[i] * f.keep - f.step_size * (m[i] / denominator);
    }
    store_up_to(args.param.f32() + at, param, count, aligned);
    store_up_to(args.m.f32() + at, m, count, aligned);
    store_up_to(args.v.f32() + at, v, count, aligned);
  }
}

void adamw(const Context& context, const AdamWArgs& args) {
  const int64_t n = args.param.numel();
  const bool aligned = packs<float>(args.param.data, 0) && packs<float>(args.grad.data, 0) &&
                       packs<float>(args.m.data, 0) && packs<float>(args.v.data, 0);
  launch(context, adamw_kernel, dim3(static_cast<unsigned>(blocks_for(args.parts, n))),
         dim3(kAdamWThreads), 0, args, n, aligned);
}

__global__ void __launch_bounds__(kSumThreads)
    square_sum_kernel(const float* x, FlatParts parts, int64_t n, bool aligned, double* partial) {
  take_turn();
  __shared__ double shared[kWarp];
  const FlatPart part = part_of(parts, n);
  aligned = aligned && part.begin % kPackFloats == 0;
  double sums[kPackFloats] = {};  // independent, to hide the latency of the additions
#pragma unroll 4
  for (int64_t i = part.begin + threadIdx.x * kPackFloats; i < part.end;
       i += kSumThreads * kPackFloats) {
    float values[kPackFloats];
    load_up_to(x + i, part.end - i, aligned, values);
#pragma unroll
    for (int k = 0; k < kPackFloats; ++k)
      sums[k] += static_cast<double>(values[k]) * static_cast<double>(values[k]);
  }
  const double sum = block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// *sum += the terms, by one block.
__global__ void __launch_bounds__(kSumThreads)
    add_kernel(const double* terms, int64_t count, double* sum) {
  take_turn();
  __shared__ double shared[kWarp];
  double part = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) part += terms[i];
  part = block_sum(part, shared);
  if (threadIdx.x == 0) *sum += part;
}

void square_sum(const Context& context, const SquareSumArgs& args) {
  const int64_t n = args.x.numel(), blocks = blocks_for(args.parts, n);
  launch(context, square_sum_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kSumThreads), 0,
         args.x.f32(), args.parts, n, packs<float>(args.x.data, 0), args.partial);
  launch(context, add_kernel, dim3(1), dim3(kSumThreads), 0, args.partial, blocks, args.sum);
}

__global__ void begin_kernel(StepState* state) {
  take_turn();
  *state = {.updates = state->updates};
}

void begin(const Context& context, StepState* state) {
  launch(context, begin_kernel, dim3(1), dim3(1), 0, state);
}

__global__ void __launch_bounds__(kSumThreads)
    weighted_sum_kernel(const float* losses, const float* weights, int64_t rows, StepState* state) {
  take_turn();
  __shared__ double shared[kWarp];
  double sum = 0.0, weight = 0.0;
#pragma unroll 4
  for (int64_t r = threadIdx.x; r < rows; r += kSumThreads) {
    sum += static_cast<double>(losses[r]) * static_cast<double>(weights[r]);
    weight += static_cast<double>(weights[r]);
  }
  sum = block_sum(sum, shared);
  weight = block_sum(weight, shared);
  if (threadIdx.x != 0) return;
  state->loss_sum += sum;
  state->weight += weight;
}

void weighted_sum(const Context& context, const WeightedSumArgs& args) {
  launch(context, weighted_sum_kernel, dim3(1), dim3(kSumThreads), 0, args.losses.f32(),
         args.weights.f32(), args.losses.numel(), args.state);
}

__global__ void decide_kernel(DecideArgs args) {
  take_turn();
  decide(*args.settings, *args.state);
}

void decide_update(const Context& context, const DecideArgs& args) {
  launch(context, decide_kernel, dim3(1), dim3(1), 0, args);
}

}  // namespace

extern const OptimizerKernels optimizer_kernels;
const OptimizerKernels optimizer_kernels = {.adamw = adamw,
                                            .square_sum = square_sum,
                                            .begin = begin,
                                            .weighted_sum = weighted_sum,
                                            .decide = decide_update};

}  // namespace llmcore::cuda
