// Ceilings of all threads together.
#include "ops/ceiling.h"

#include <numeric>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

// The sum of rate(thread) over all threads, each called on a thread of its own.
template <class Rate>
double on_all_threads(Rate rate) {
  std::vector<double> rates(num_threads());
  parallel_for(num_threads(), [&](int64_t thread, int) { rates[thread] = rate(thread); });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace

double measure_peak(const Kernels& kernels, DType dtype, double seconds) {
  const auto rate = dtype == DType::kFloat32    ? kernels.ceiling->multiply_adds
                    : dtype == DType::kBFloat16 ? kernels.ceiling->bfloat16_multiply_adds
                    : dtype == DType::kInt8     ? kernels.ceiling->int8_multiply_adds
                                                : nullptr;
  CHECK(rate != nullptr, DTypeError, "measure_peak: dtype must be float32, bfloat16 or int8, got ",
        dtype_name(dtype));
  return on_all_threads([&](int64_t) { return rate(seconds); });
}

double measure_read(const Context& context, const Tensor& x, double seconds) {
  const int64_t threads = num_threads(), count = x.numel() / threads;
  check_tensor("measure_read", "x", x, "[N]", {x.numel()});
  CHECK(count > 0, ShapeError, "measure_read: x must have an element for each of ", threads,
        " threads, got ", shape_string(x));
  return on_all_threads([&](int64_t thread) {
    return context.kernels->ceiling->reads(x.f32() + thread * count, count, seconds);
  });
}

}  // namespace llmcore
