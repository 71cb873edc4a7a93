// Softmax cross-entropy in CUDA: a block a row, which reads its logits from memory once and from
// the caches once more, and writes their gradient.
#include "ops/cross_entropy.h"

#include "cuda/exp_sum.h"

namespace llmcore::cuda {
namespace {

constexpr int kThreads = 512;  // so that two blocks of registers fit

// The terms are those of cross_entropy_cpu.cpp: log(sum) plus distances to the maximum.
// With kAligned rows are whole packs.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropyArgs args) {
  take_turn();
  __shared__ float shared[kWarp];
  const int64_t width = args.logits.cols(), row = blockIdx.x, steps = row_steps<T>(width);
  const int64_t target = args.targets.as<int32_t>()[row];
  const int64_t stride = args.stride > 0 ? args.stride : width;
  const T* logits = args.logits.as<T>() + row * stride;
  T* dlogits = args.dlogits ? args.dlogits.as<T>() + row * stride : nullptr;
  const float* weights = args.class_weight.f32();
  float v[kPack<T>];
  if (target < 0) {  // the whole block
    if (threadIdx.x == 0) args.losses.f32()[row] = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) v[i] = 0.0f;
    for (int64_t step = 0; dlogits != nullptr && step < steps; ++step)
      store_step<T, kAligned>(dlogits, width, step, v);
    return;
  }

  const float at_target = as_float(logits[target]);
  const ExpSum total = exp_sum<T, kAligned>(logits, width, shared);
  const float smoothing = args.label_smoothing, share = smoothing / static_cast<float>(width);
  float weight_sum = static_cast<float>(width);
  if (weights != nullptr && smoothing > 0.0f) {
    weight_sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) weight_sum += weights[i];
    weight_sum = block_sum(weight_sum, shared);
  }
  const float weight = weights == nullptr ? 1.0f : weights[target];
  const float kept = (1.0f - smoothing) * weight;

  float gaps = 0.0f;  // sum_v w[v] (max - z[v])
  if (dlogits != nullptr || smoothing > 0.0f) {
    const float scale = dlogits == nullptr ? 0.0f : args.row_scale.f32()[row];
    const float normaliser = (kept + share * weight_sum) / total.sum;
    for (int64_t step = 0; step < steps; ++step) {
      load_step<T, kAligned>(logits, width, step, total.max, v);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        const int64_t column = row_column<T, kAligned>(step, i);
        const float below = total.max - v[i];
        float wanted = 0.0f;  // of the gradient's second part
        if (smoothing > 0.0f) {
          const float w = weights == nullptr ? 1.0f : column < width ? weights[column] : 0.0f;
          gaps += w * below;
          wanted = share * w;
        }
        if (column == target) wanted += kept;
        v[i] = column < width ? (expf(-below) * normaliser - wanted) * scale : 0.0f;
      }
      if (dlogits != nullptr) store_step<T, kAligned>(dlogits, width, step, v);
    }
  }
  if (smoothing > 0.0f) gaps = block_sum(gaps, shared);
  if (threadIdx.x > 0) return;
  const float log_sum = logf(total.sum);
  float loss = kept * (log_sum + (total.max - at_target));
  if (smoothing > 0.0f) loss += share * (weight_sum * log_sum + gaps);
  args.losses.f32()[row] = loss;
}

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  const int64_t width = args.logits.cols(), stride = args.stride > 0 ? args.stride : width;
  with_type(args.logits.dtype, [&](auto tag) {
    using T = decltype(tag);
    with_bool(packs<T>(args.logits.data, stride) && packs<T>(args.dlogits.data, stride),
              [&](auto a) {
                launch(context, cross_entropy_kernel<T, a()>,
                       dim3(static_cast<unsigned>(args.logits.rows())),
                       dim3(row_threads<T>(width, kThreads)), 0, args);
              });
  });
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {.cross_entropy = cross_entropy};

}  // namespace llmcore::cuda
