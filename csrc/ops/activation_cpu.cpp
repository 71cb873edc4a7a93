// Activation functions and gated linear units on the CPU.
#include "core/parallel.h"
#include "ops/activation_simd.h"
#include "simd/loop.h"

namespace llmcore::LLMCORE_ISA {
namespace {

void forward(const Context&, const ActivationArgs& args) {
  const float* x = args.x.f32();
  float* y = args.y.f32();
  with_fixed(args.activation, [&](auto fixed) {
    parallel_chunks(args.x.numel(), kTaskElements, [&](int64_t begin, int64_t end, int) {
      for_each_vector(begin, end, [&](int64_t i, int64_t n) {
        store_up_to(y + i, activate(fixed.value, load_up_to(x + i, n)).value, n);
      });
    });
  });
}

void backward(const Context&, const ActivationBackwardArgs& args) {
  const float *x = args.x.f32(), *dy = args.dy.f32();
  float* dx = args.dx.f32();
  with_fixed(args.activation, [&](auto fixed) {
    parallel_chunks(args.x.numel(), kTaskElements, [&](int64_t begin, int64_t end, int) {
      for_each_vector(begin, end, [&](int64_t i, int64_t n) {
        const Vec slope = activate(fixed.value, load_up_to(x + i, n)).slope;
        store_up_to(dx + i, load_up_to(dy + i, n) * slope, n);
      });
    });
  });
}

void gated_forward(const Context&, const GatedArgs& args) {
  const int64_t width = args.y.cols();
  with_fixed(args.activation, [&](auto fixed) {
    parallel_chunks(args.y.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const float* gate = args.gate.f32() + row * args.row_stride;
        const float* up = args.up.f32() + row * args.row_stride;
        float* y = args.y.f32() + row * width;
        for_each_vector(0, width, [&](int64_t i, int64_t n) {
          store_up_to(y + i,
                      activate(fixed.value, load_up_to(gate + i, n)).value * load_up_to(up + i, n),
                      n);
        });
      }
    });
  });
}

void gated_backward(const Context&, const GatedBackwardArgs& args) {
  const int64_t width = args.dy.cols();
  with_fixed(args.activation, [&](auto fixed) {
    parallel_chunks(args.dy.rows(), rows_per_task(width), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const float* dy = args.dy.f32() + row * width;
        const float* gate = args.gate.f32() + row * args.row_stride;
        const float* up = args.up.f32() + row * args.row_stride;
        float* dgate = args.dgate.f32() + row * args.drow_stride;
        float* dup = args.dup.f32() + row * args.drow_stride;
        for_each_vector(0, width, [&](int64_t i, int64_t n) {
          const Activated g = activate(fixed.value, load_up_to(gate + i, n));
          const Vec u = load_up_to(up + i, n), d = load_up_to(dy + i, n);
          store_up_to(dgate + i, d * u * g.slope, n);
          store_up_to(dup + i, d * g.value, n);
        });
      }
    });
  });
}

}  // namespace

extern const ActivationKernels activation_kernels;
const ActivationKernels activation_kernels = {.forward = forward,
                                              .backward = backward,
                                              .gated_forward = gated_forward,
                                              .gated_backward = gated_backward};

}  // namespace llmcore::LLMCORE_ISA
