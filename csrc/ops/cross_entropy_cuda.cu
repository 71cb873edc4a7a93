// Softmax cross-entropy in CUDA: a block a row, which reads its logits from memory once, keeps what
// fits of them in shared memory, and writes their gradient.
#include "ops/cross_entropy.h"

#include "cuda/exp_sum.h"

namespace llmcore::cuda {
namespace {

constexpr int kThreads = 512;

// The terms are those of cross_entropy_cpu.cpp: log(sum) plus distances to the maximum. With
// kAligned rows are whole packs; with kPlain there is no smoothing and there are no weights. The
// first `held` steps of a row are kept for the gradient, every thread its own packs.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_kernel(CrossEntropyArgs args, int held) {
  take_turn();
  __shared__ float shared[kWarp];
  uint4* const mine = dynamic_shared<uint4>() + threadIdx.x;
  const int64_t width = args.logits.cols(), row = blockIdx.x;
  const int64_t target = args.targets.as<int32_t>()[row];
  const int64_t stride = args.stride > 0 ? args.stride : width;
  const T* logits = args.logits.as<T>() + row * stride;
  T* dlogits = args.dlogits ? args.dlogits.as<T>() + row * stride : nullptr;
  if (target < 0) {  // the whole block
    if (threadIdx.x == 0) args.losses.f32()[row] = 0.0f;
    if (dlogits == nullptr) return;
    each_step<T>(width, [&](int step, auto whole) {
      const float zeros[kPack<T>] = {};
      store_step<T, kAligned>(dlogits, width, step, whole, zeros);
    });
    return;
  }

  const float at_target = as_float(logits[target]);
  const auto load = [&](int step, auto whole) {
    return load_step<T, kAligned>(logits, width, step, whole, -INFINITY);
  };
  const ExpSum total = exp_sum<T>(width, shared, [&](int step, auto whole) {
    const uint4 bytes = load(step, whole);
    if (step < held) mine[step * blockDim.x] = bytes;
    return bytes;
  });
  const float* weights = kPlain ? nullptr : args.class_weight.f32();
  const float smoothing = kPlain ? 0.0f : args.label_smoothing;
  const float share = smoothing / static_cast<float>(width);
  float weight_sum = static_cast<float>(width);
  if (weights != nullptr && smoothing > 0.0f) {
    weight_sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) weight_sum += weights[i];
    weight_sum = block_sum(weight_sum, shared);
  }
  const auto share_of = [&](int64_t column) {
    return weights == nullptr ? share : share * weights[column];
  };
  const float kept = (1.0f - smoothing) * (weights == nullptr ? 1.0f : weights[target]);

  float gaps = 0.0f;  // s / V sum_v w[v] (max - z[v])
  if (dlogits != nullptr || smoothing > 0.0f) {
    const float scale = dlogits == nullptr ? 0.0f : args.row_scale.f32()[row];
    const float factor = (kept + share * weight_sum) / total.sum * scale;
    each_step<T>(width, [&](int step, auto whole) {
      float v[kPack<T>];
      open_pack<T>(step < held ? mine[step * blockDim.x] : load(step, whole), v);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        const float z = v[i];
        v[i] = exp_below(z, total.max) * factor;
        if constexpr (!kPlain) {
          const int64_t column = row_column<T, kAligned>(step, i);
          if (smoothing == 0.0f || column >= width) continue;
          gaps += share_of(column) * (total.max - z);
          v[i] -= share_of(column) * scale;
        }
      }
      if (dlogits != nullptr) store_step<T, kAligned>(dlogits, width, step, whole, v);
    });
    // The target's gradient again, by the thread that has written it.
    const int64_t owner = kAligned ? target / kPack<T> : target;
    if (dlogits != nullptr && owner % blockDim.x == threadIdx.x)
      dlogits[target] = from_float<T>(exp_below(at_target, total.max) * factor -
                                      (share_of(target) + kept) * scale);
  }
  if (smoothing > 0.0f) gaps = block_sum(gaps, shared);
  if (threadIdx.x > 0) return;
  const float log_sum = logf(total.sum);
  args.losses.f32()[row] =
      kept * (log_sum + (total.max - at_target)) + share * weight_sum * log_sum + gaps;
}

// How many steps of a row two blocks can keep, each its own, in the shared memory they have.
template <class T>
int steps_held(const Context& context, int64_t width, unsigned threads) {
  constexpr int kOthers = 2 << 10;  // what CUDA and the kernel take of it
  int of_processor = 0;
  check(cudaDeviceGetAttribute(&of_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                               context.queue->device),
        "cudaDeviceGetAttribute");
  return static_cast<int>(std::min((of_processor / 2 - kOthers) / int64_t{16 * threads},
                                   blocks_of(width, int64_t{kPack<T>} * threads)));
}

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  const int64_t width = args.logits.cols(), stride = args.stride > 0 ? args.stride : width;
  with_type(args.logits.dtype, [&](auto tag) {
    using T = decltype(tag);
    const unsigned threads = row_threads<T>(width, kThreads);
    const int held = args.dlogits ? steps_held<T>(context, width, threads) : 0;
    const bool aligned = packs<T>(args.logits.data, stride) && packs<T>(args.dlogits.data, stride);
    with_bool(aligned, [&](auto a) {
      with_bool(args.label_smoothing == 0.0f && !args.class_weight, [&](auto plain) {
        launch(context, cross_entropy_kernel<T, a(), plain()>,
               dim3(static_cast<unsigned>(args.logits.rows())), dim3(threads),
               size_t{16} * threads * held, args, held);
      });
    });
  });
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {.cross_entropy = cross_entropy};

}  // namespace llmcore::cuda
