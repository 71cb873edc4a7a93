// Matrix products on the CPU.
#include <time.h>

#include "core/parallel.h"
#include "ops/matmul.h"
#include "simd/vec.h"


namespace llmcore::LLMCORE_ISA {
namespace {

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x > 0 ? x : 0.0f;
    case Activation::kGelu:
      return 0.5f * x * (1.0f + __builtin_erff(x * 0.70710678118654752f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + __builtin_tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::kSilu:
      return x / (1.0f + __builtin_expf(-x));
  }
  return x;
}

float activate_derivative(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return 1.0f;
    case Activation::kRelu:
      return x > 0 ? 1.0f : 0.0f;
    case Activation::kGelu:
      return 0.5f * (1.0f + __builtin_erff(x * 0.70710678118654752f)) +
             x * 0.3989422804014327f * __builtin_expf(-0.5f * x * x);
    case Activation::kGeluTanh: {
      const float t = __builtin_tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x));
      return 0.5f * (1.0f + t) +
             0.5f * x * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 3 * 0.044715f * x * x);
    }
    case Activation::kSilu: {
      const float s = 1.0f / (1.0f + __builtin_expf(-x));
      return s * (1.0f + x * (1.0f - s));
    }
  }
  return 1.0f;
}

constexpr int64_t kColumns = 4 * kLanes;

int64_t scratch_bytes(const MatmulArgs& args) {
  return (args.a.numel() * args.transpose_a + (args.b.numel() + kColumns) * args.transpose_b + 16) * 4;
}

void transpose(const float* from, float* to, int64_t rows, int64_t cols) {
  parallel_for(rows, [&](int64_t r, int) {
    for (int64_t c = 0; c < cols; ++c) to[c * rows + r] = from[r * cols + c];
  });
}

float finish(const MatmulArgs& args, int64_t m, int64_t n, float v) {
  const int64_t i = m * args.c.dim(1) + n;
  if (args.bias) v += args.bias.f32()[n];
  if (args.pre_activation) args.pre_activation.f32()[i] = v;
  v = activate(args.activation, v);
  if (args.gate_input) v *= activate_derivative(args.gate_activation, args.gate_input.f32()[i]);
  if (args.dropout.p > 0.0f) {
    const uint32_t word =
        philox(args.dropout.seed, args.dropout.stream, static_cast<uint64_t>(i / 4)).lane[i % 4];
    v = word >= dropout_threshold(args.dropout.p) ? v / (1.0f - args.dropout.p) : 0.0f;
  }
  if (args.residual) v += args.residual.f32()[i];
  return v;
}

void matmul(const Context&, const MatmulArgs& args) {
  const int64_t m = args.c.dim(0), n = args.c.dim(1);
  const int64_t k = args.transpose_a ? args.a.dim(0) : args.a.dim(1);
  float* scratch = args.scratch.f32();
  const float* a = args.a.f32();
  const float* b = args.b.f32();
  if (args.transpose_a) {
    transpose(a, scratch, k, m);
    a = scratch;
    scratch += m * k;
  }
  if (args.transpose_b) {
    transpose(b, scratch, n, k);
    b = scratch;
  }
  parallel_for(m, [&](int64_t row, int) {
    float* c = args.c.f32() + row * n;
    for (int64_t column = 0; column < n; column += kColumns) {
      const int64_t count = n - column < kColumns ? n - column : kColumns;
      float total[kColumns];
      for (int64_t i = 0; i < kColumns; ++i)
        total[i] = args.accumulate && i < count ? c[column + i] : 0.0f;
      for (int64_t begin = 0; begin < k; begin += kMatmulBlock) {
        const int64_t end = begin + kMatmulBlock < k ? begin + kMatmulBlock : k;
        float sum[kColumns] = {};
        for (int64_t i = begin; i < end; ++i) {
          const float* line = b + i * n + column;
          if (count == kColumns) {
            for (int64_t j = 0; j < kColumns; ++j) sum[j] += a[row * k + i] * line[j];
          } else {
            float padded[kColumns] = {};
            for (int64_t j = 0; j < count; ++j) padded[j] = line[j];
            for (int64_t j = 0; j < kColumns; ++j) sum[j] += a[row * k + i] * padded[j];
          }
        }
        for (int64_t j = 0; j < kColumns; ++j) total[j] += sum[j];
      }
      for (int64_t i = 0; i < count; ++i) c[column + i] = finish(args, row, column + i, total[i]);
    }
  });
}

void column_sum(const Context&, const ColumnSumArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols();
  const int64_t partials = args.partial.dim(0);
  parallel_for(partials, [&](int64_t block, int) {
    float* sum = args.partial.f32() + block * width;
    __builtin_memset(sum, 0, width * sizeof(float));
    const int64_t end = (block + 1) * rows / partials;
    for (int64_t n = block * rows / partials; n < end; ++n) {
      const float* x = args.x.f32() + n * width;
      for (int64_t c = 0; c < width; ++c) sum[c] += x[c];
    }
  });
  float* out = args.out.f32();
  for (int64_t block = 0; block < partials; ++block)
    for (int64_t c = 0; c < width; ++c) out[c] += args.partial.f32()[block * width + c];
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Enough independent chains to hide the latency of a multiply-add on any machine, few enough to stay
// in registers.
constexpr int kChains = 12;
constexpr int64_t kPeakRounds = 20000;

double peak_of_one_thread(double seconds) {
  double best = 0.0;
  const double end = now() + seconds;
  Vec sum[kChains] = {};
  Vec factor = broadcast(0.5f);
  do {
    const double start = now();
    for (int64_t round = 0; round < kPeakRounds; ++round) {
      asm volatile("" : "+m"(factor));
      const Vec x = factor;
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], x, x);
    }
    const double rate = 2.0 * kLanes * kChains * kPeakRounds / (now() - start);
    best = rate > best ? rate : best;
  } while (now() < end);
  for (int i = 0; i < kChains; ++i) asm volatile("" : : "m"(sum[i]));
  return best;
}

double measure_peak(double seconds) {
  double rates[4096] = {};
  const int threads = num_threads();
  parallel_for(threads, [&](int64_t i, int) { rates[i] = peak_of_one_thread(seconds); });
  double total = 0.0;
  for (int i = 0; i < threads; ++i) total += rates[i];
  return total;
}

}  // namespace

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {.scratch_bytes = scratch_bytes,
                                      .matmul = matmul,
                                      .column_sum = column_sum,
                                      .measure_peak = measure_peak};

}  // namespace llmcore::LLMCORE_ISA
