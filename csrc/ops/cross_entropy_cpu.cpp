// Softmax cross-entropy on the CPU: a pass for a row's maximum, one for the exponentials, and one
// to turn those into the gradient. The exponentials cost most, and each is computed once.
#include "core/parallel.h"
#include "ops/cross_entropy.h"
#include "simd/exp_sum.h"

namespace llmcore::LLMCORE_ISA {
namespace {

struct Classes {
  const float* weight;  // null: ones
  float weight_sum;
  float smoothing;  // s
  float share;      // s / V
};

// With lse = max + log(sum), every term is log(sum) plus the distance to the maximum: large logits
// cancel before anything is rounded.
//   loss = (1 - s) w[t] (log(sum) + max - z[t]) + s / V sum_v w[v] (log(sum) + max - z[v])
// and, with e the exponentials and a = (1 - s) w[t] + s / V sum_u w[u] what the targets add up to,
//   dz[v] = scale (a / sum e[v] - (1 - s) w[t] [v = t] - s / V w[v])
float row_loss(const Classes& classes, const float* logits, float* dlogits, int64_t width,
               int64_t target, float scale) {
  const float max = finite_max(logits, width);
  const float gap = max - logits[target];
  float gaps = 0.0f;
  if (classes.smoothing > 0.0f)
    gaps = row_sum(width, [&](int64_t v, int64_t n) {
      const Vec below = max - load_up_to(logits + v, n, max);  // 0 beyond n
      return classes.weight == nullptr ? below : below * load_up_to(classes.weight + v, n);
    });

  const float sum = exp_sum(logits, dlogits, width, max);
  const float weight = classes.weight == nullptr ? 1.0f : classes.weight[target];
  const float kept = (1.0f - classes.smoothing) * weight;

  if (dlogits != nullptr) {
    const float normaliser = (kept + classes.share * classes.weight_sum) / sum;
    const float at_target = dlogits[target] * normaliser;
    for_each_vector(0, width, [&](int64_t v, int64_t n) {
      Vec gradient = load_up_to(dlogits + v, n) * normaliser;
      if (classes.smoothing > 0.0f)
        gradient -= classes.weight == nullptr ? broadcast(classes.share)
                                              : classes.share * load_up_to(classes.weight + v, n);
      store_up_to(dlogits + v, gradient * scale, n);
    });
    dlogits[target] = (at_target - (kept + classes.share * weight)) * scale;
  }
  const float log_sum = log(sum);
  const float loss = kept * (log_sum + gap);
  if (classes.smoothing == 0.0f) return loss;
  return loss + classes.share * (classes.weight_sum * log_sum + gaps);
}

void cross_entropy(const Context&, const CrossEntropyArgs& args) {
  const int64_t width = args.logits.cols();
  Classes classes{.weight = args.class_weight.f32(),
                  .weight_sum = static_cast<float>(width),
                  .smoothing = args.label_smoothing,
                  .share = args.label_smoothing / static_cast<float>(width)};
  if (classes.weight != nullptr)
    classes.weight_sum =
        row_sum(width, [&](int64_t v, int64_t n) { return load_up_to(classes.weight + v, n); });

  parallel_chunks(args.logits.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t target = args.targets.as<int32_t>()[row];
      float* dlogits = args.dlogits ? args.dlogits.f32() + row * width : nullptr;
      float loss = 0.0f;
      if (target >= 0)
        loss = row_loss(classes, args.logits.f32() + row * width, dlogits, width, target,
                        dlogits == nullptr ? 0.0f : args.row_scale.f32()[row]);
      else if (dlogits != nullptr)
        __builtin_memset(dlogits, 0, width * sizeof(float));
      args.losses.f32()[row] = loss;
    }
  });
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {.cross_entropy = cross_entropy};

}  // namespace llmcore::LLMCORE_ISA
