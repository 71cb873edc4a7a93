// Layer norm and RMS norm on the CPU: one pass for the statistics, one to write.
#include "core/parallel.h"
#include "ops/norm.h"
#include "simd/loop.h"

namespace llmcore::LLMCORE_ISA {
namespace {

void forward_row(const NormForwardArgs& args, int64_t n) {
  const int64_t width = args.x.cols();
  const float* x = args.x.f32() + n * width;
  float* y = args.y.f32() + n * width;
  const float* weight = args.weight.f32();
  const float* bias = args.bias.f32();
  const float count = static_cast<float>(width);

  float mean = 0.0f;
  if (args.kind == NormKind::kLayer)
    mean = row_sum(width, [&](int64_t c, int64_t n) { return load_up_to(x + c, n); }) / count;
  const float variance =
      row_sum(width,
              [&](int64_t c, int64_t n) {
                const Vec centred = load_up_to(x + c, n) - mean;
                return n >= kLanes ? centred * centred : mask_tail(centred * centred, n);
              }) /
      count;
  const float rstd = 1.0f / __builtin_sqrtf(variance + args.eps);

  for_each_vector(0, width, [&](int64_t c, int64_t n) {
    Vec v = (load_up_to(x + c, n) - mean) * rstd;
    if (weight != nullptr) v *= load_up_to(weight + c, n);
    if (bias != nullptr) v += load_up_to(bias + c, n);
    store_up_to(y + c, v, n);
  });
  if (args.mean) args.mean.f32()[n] = mean;
  if (args.rstd) args.rstd.f32()[n] = rstd;
}

void forward(const Context&, const NormForwardArgs& args) {
  parallel_chunks(args.x.rows(), rows_per_task(args.x.cols()),
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t n = begin; n < end; ++n) forward_row(args, n);
                  });
}

// With xhat = (x - mean) rstd and g = dy weight:
//   dx = rstd (g - mean_c(g) - xhat mean_c(g xhat)); RMS norm has no mean_c(g) term.
// Adds dy xhat and dy to this block's rows of the parameter gradients.
void backward_row(const NormBackwardArgs& args, int64_t n, float* dweight, float* dbias) {
  const int64_t width = args.x.cols();
  const float* x = args.x.f32() + n * width;
  const float* dy = args.dy.f32() + n * width;
  const float* weight = args.weight.f32();
  float* dx = args.dx.f32() + n * width;
  const bool layer = args.kind == NormKind::kLayer;
  const float mean = layer ? args.mean.f32()[n] : 0.0f;
  const float rstd = args.rstd.f32()[n];
  const float count = static_cast<float>(width);

  const auto xhat = [&](int64_t c, int64_t n) { return (load_up_to(x + c, n) - mean) * rstd; };
  const auto scaled = [&](int64_t c, int64_t n) {
    const Vec g = load_up_to(dy + c, n);
    return weight == nullptr ? g : g * load_up_to(weight + c, n);
  };
  float sums[2];  // of g and of g xhat
  row_sums(width, sums, [&](int64_t c, int64_t n, Vec* terms) {
    terms[0] = scaled(c, n);
    terms[1] = terms[0] * xhat(c, n);
  });
  const float mean_g = layer ? sums[0] / count : 0.0f;
  const float mean_gx = sums[1] / count;

  for_each_vector(0, width, [&](int64_t c, int64_t n) {
    const Vec centred = xhat(c, n), gradient = load_up_to(dy + c, n);
    store_up_to(dweight + c, load_up_to(dweight + c, n) + gradient * centred, n);
    store_up_to(dbias + c, load_up_to(dbias + c, n) + gradient, n);
    Vec v = (scaled(c, n) - mean_g - centred * mean_gx) * rstd;
    if (args.accumulate) v += load_up_to(dx + c, n);
    store_up_to(dx + c, v, n);
  });
}

void backward(const Context&, const NormBackwardArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  const int64_t partials = args.partial.dim(0);
  float* partial = args.partial.f32();
  // Small inputs: several blocks a task. What a block holds does not change.
  const int64_t rows_per_block = (rows + partials - 1) / partials;
  parallel_chunks(partials, rows_per_task(rows_per_block * width),
                  [&](int64_t first, int64_t last, int) {
                    for (int64_t block = first; block < last; ++block) {
                      float* dweight = partial + block * 2 * width;
                      float* dbias = dweight + width;
                      __builtin_memset(dweight, 0, 2 * width * sizeof(float));
                      const int64_t end = (block + 1) * rows / partials;
                      for (int64_t n = block * rows / partials; n < end; ++n)
                        backward_row(args, n, dweight, dbias);
                    }
                  });
  const auto add_up = [&](const Tensor& out, int64_t which) {
    if (!out) return;
    for (int64_t block = 0; block < partials; ++block) {
      const float* terms = partial + (block * 2 + which) * width;
      for_each_vector(0, width, [&](int64_t c, int64_t n) {
        float* sum = out.f32() + c;
        store_up_to(sum, load_up_to(sum, n) + load_up_to(terms + c, n), n);
      });
    }
  };
  add_up(args.dweight, 0);
  add_up(args.dbias, 1);
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {.forward = forward, .backward = backward};

}  // namespace llmcore::LLMCORE_ISA
