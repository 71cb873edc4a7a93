// Elementwise and row operations on the CPU.
#include "core/parallel.h"
#include "ops/elementwise.h"
#include "simd/exp_sum.h"
#include "simd/half.h"
#include "simd/loop.h"
#include "simd/philox.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// body(i, n) for every vector of `count` elements, on all threads.
template <class Body>
LLMCORE_INLINE void parallel_vectors(int64_t count, Body body) {
  parallel_chunks(count, kTaskElements,
                  [&](int64_t begin, int64_t end, int) { for_each_vector(begin, end, body); });
}

void dropout(const Context&, const DropoutArgs& args) {
  const float *x = args.x.f32(), *residual = args.residual.f32();
  float* y = args.y.f32();
  parallel_vectors(args.x.numel(), [&](int64_t i, int64_t n) {
    Vec v = load_up_to(x + i, n);
    if (args.dropout.p > 0.0f) v *= dropout_factor(args.dropout, args.offset + i);
    if (residual != nullptr) v += load_up_to(residual + i, n);
    store_up_to(y + i, v, n);
  });
}

void add(const Context&, const AddArgs& args) {
  const float *a = args.a.f32(), *b = args.b.f32();
  float* y = args.y.f32();
  parallel_vectors(args.y.numel(), [&](int64_t i, int64_t n) {
    store_up_to(y + i, load_up_to(a + i, n) + load_up_to(b + i, n), n);
  });
}

void scale(const Context&, const ScaleArgs& args) {
  const float* x = args.x.f32();
  float* y = args.y.f32();
  const Vec factor = broadcast(args.factor);
  parallel_vectors(args.y.numel(), [&](int64_t i, int64_t n) {
    store_up_to(y + i, load_up_to(x + i, n) * factor, n);
  });
}

void fill(const Context&, const FillArgs& args) {
  float* y = args.y.f32();
  const Vec value = broadcast(args.value);
  parallel_vectors(args.y.numel(), [&](int64_t i, int64_t n) { store_up_to(y + i, value, n); });
}

// Whole vectors of bit patterns; the ragged end goes through arrays of one vector.
template <class Widen>
LLMCORE_INLINE void widen_all(const CastArgs& args, Widen widen) {
  const uint16_t* x = args.x.as<uint16_t>();
  float* y = args.y.f32();
  parallel_vectors(args.x.numel(), [&](int64_t i, int64_t n) {
    uint16_t bits[kLanes] = {};
    __builtin_memcpy(bits, x + i, (n >= kLanes ? kLanes : n) * sizeof(uint16_t));
    store_up_to(y + i, widen(load_half(bits)), n);
  });
}

template <class Narrow>
LLMCORE_INLINE void narrow_all(const CastArgs& args, Narrow narrow) {
  const float* x = args.x.f32();
  uint16_t* y = args.y.as<uint16_t>();
  parallel_vectors(args.x.numel(), [&](int64_t i, int64_t n) {
    uint16_t bits[kLanes];
    store_half(bits, narrow(load_up_to(x + i, n)));
    __builtin_memcpy(y + i, bits, (n >= kLanes ? kLanes : n) * sizeof(uint16_t));
  });
}

void cast(const Context&, const CastArgs& args) {
  if (args.x.dtype == DType::kBFloat16)
    widen_all(args, [](VecU bits) { return widen_bfloat16(bits); });
  else if (args.x.dtype == DType::kFloat16)
    widen_all(args, [](VecU bits) { return widen_float16(bits); });
  else if (args.y.dtype == DType::kBFloat16)
    narrow_all(args, [](Vec v) { return narrow_bfloat16(v); });
  else
    narrow_all(args, [](Vec v) { return narrow_float16(v); });
}

void softmax_row(const float* x, float* y, int64_t width) {
  const float max = finite_max(x, width);
  const float sum = exp_sum(x, y, width, max);
  const float divisor = sum == 0.0f ? 1.0f : sum;  // no finite element: zeros
  for_each_vector(0, width, [&](int64_t i, int64_t n) {
    store_up_to(y + i, load_up_to(y + i, n) / divisor, n);
  });
}

void log_softmax_row(const float* x, float* y, int64_t width) {
  const float max = finite_max(x, width);
  const float sum = exp_sum(x, nullptr, width, max);
  if (sum == 0.0f)  // no finite element: zeros
    return for_each_vector(0, width, [&](int64_t i, int64_t n) { store_up_to(y + i, Vec{}, n); });
  const float log_sum = log(sum);
  for_each_vector(0, width, [&](int64_t i, int64_t n) {
    store_up_to(y + i, load_up_to(x + i, n) - max - log_sum, n);
  });
}

void softmax(const Context&, const SoftmaxArgs& args) {
  const int64_t width = args.x.cols();
  parallel_chunks(args.x.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = args.x.f32() + row * width;
      float* y = args.y.f32() + row * width;
      if (args.log)
        log_softmax_row(x, y, width);
      else
        softmax_row(x, y, width);
    }
  });
}

// softmax:      dx = y (dy - sum(dy y))
// log softmax:  dx = dy - e^y sum(dy)
void softmax_backward_row(bool of_log, const float* dy, const float* y, float* dx, int64_t width) {
  const float sum = row_sum(width, [&](int64_t i, int64_t n) {
    const Vec d = load_up_to(dy + i, n);  // zero beyond n
    return of_log ? d : d * load_up_to(y + i, n);
  });
  for_each_vector(0, width, [&](int64_t i, int64_t n) {
    const Vec d = load_up_to(dy + i, n), out = load_up_to(y + i, n);
    store_up_to(dx + i, of_log ? d - exp(out) * sum : out * (d - sum), n);
  });
}

void softmax_backward(const Context&, const SoftmaxBackwardArgs& args) {
  const int64_t width = args.y.cols();
  parallel_chunks(args.y.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      softmax_backward_row(args.log, args.dy.f32() + row * width, args.y.f32() + row * width,
                           args.dx.f32() + row * width, width);
  });
}

void gather_rows(const Context&, const GatherRowsArgs& args) {
  const int64_t width = args.x.cols();
  const int32_t* index = args.index.as<int32_t>();
  parallel_chunks(args.y.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      __builtin_memcpy(args.y.f32() + row * width, args.x.f32() + index[row] * width,
                       width * sizeof(float));
  });
}

// The first place in ascending `index` whose row is at least `row`.
int64_t lower_bound(const int32_t* index, int64_t count, int64_t row) {
  int64_t begin = 0;
  while (begin < count) {
    const int64_t middle = begin + (count - begin) / 2;
    if (index[middle] < row)
      begin = middle + 1;
    else
      count = middle;
  }
  return begin;
}

void scatter_rows(const Context&, const ScatterRowsArgs& args) {
  const int64_t width = args.x.cols(), count = args.index.numel();
  const int32_t* index = args.index.as<int32_t>();
  parallel_chunks(args.y.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
    __builtin_memset(args.y.f32() + begin * width, 0, (end - begin) * width * sizeof(float));
    for (int64_t i = lower_bound(index, count, begin); i < count && index[i] < end; ++i) {
      const float* x = args.x.f32() + i * width;
      float* y = args.y.f32() + index[i] * width;
      for_each_vector(0, width, [&](int64_t c, int64_t n) {
        store_up_to(y + c, load_up_to(y + c, n) + load_up_to(x + c, n), n);
      });
    }
  });
}

void copy_rows(const Context&, const CopyRowsArgs& args) {
  const auto* x = static_cast<const float*>(args.x);
  auto* y = static_cast<float*>(args.y);
  parallel_chunks(args.rows, rows_per_task(args.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      __builtin_memcpy(y + row * args.y_stride, x + row * args.x_stride, args.cols * sizeof(float));
  });
}

void transpose(const Context&, const TransposeArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  for (int64_t c = 0; c < width; ++c)
    for (int64_t row = 0; row < rows; ++row)
      args.y.f32()[c * rows + row] = args.x.f32()[row * width + c];
}

}  // namespace

extern const ElementwiseKernels elementwise_kernels;
const ElementwiseKernels elementwise_kernels = {.dropout = dropout,
                                                .add = add,
                                                .scale = scale,
                                                .fill = fill,
                                                .cast = cast,
                                                .softmax = softmax,
                                                .softmax_backward = softmax_backward,
                                                .gather_rows = gather_rows,
                                                .scatter_rows = scatter_rows,
                                                .copy_rows = copy_rows,
                                                .transpose = transpose};

}  // namespace llmcore::LLMCORE_ISA
