// Activation functions and gated linear units on CUDA: a pack of 16 bytes a thread.
#include "ops/activation_cuda.h"

#include "cuda/floats.h"
#include "cuda/launch.h"

namespace llmcore::cuda {
namespace {

// f(T{}, activation as a constant): the kernels there are.
template <class F>
void with_kernel(DType dtype, Activation activation, F f) {
  with_type(dtype,
            [&](auto type) { with_activation(activation, [&](auto fixed) { f(type, fixed); }); });
}

template <class T, Activation kActivation>
__global__ void forward_kernel(const T* x, T* y, int64_t n, bool aligned) {
  take_turn();
  const int64_t begin = thread_index() * kPack<T>;
  if (begin >= n) return;
  float values[kPack<T>];
  load_up_to(x + begin, n - begin, aligned, values);
#pragma unroll
  for (float& value : values) value = activate<kActivation>(value);
  store_up_to(y + begin, values, n - begin, aligned);
}

void forward(const Context& context, const ActivationArgs& args) {
  with_kernel(args.x.dtype, args.activation, [&](auto type, auto fixed) {
    using T = decltype(type);
    const int64_t n = args.x.numel();
    launch_each(context, forward_kernel<T, fixed.value>, blocks_of(n, kPack<T>), args.x.as<T>(),
                args.y.as<T>(), n, packs<T>(args.x.data, 0) && packs<T>(args.y.data, 0));
  });
}

template <class T, Activation kActivation>
__global__ void backward_kernel(const T* dy, const T* x, T* dx, int64_t n, bool aligned) {
  take_turn();
  const int64_t begin = thread_index() * kPack<T>;
  if (begin >= n) return;
  float values[kPack<T>], gradients[kPack<T>];
  load_up_to(x + begin, n - begin, aligned, values);
  load_up_to(dy + begin, n - begin, aligned, gradients);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    float slope;
    activate_with_slope<kActivation>(values[i], slope);
    gradients[i] *= slope;
  }
  store_up_to(dx + begin, gradients, n - begin, aligned);
}

void backward(const Context& context, const ActivationBackwardArgs& args) {
  with_kernel(args.x.dtype, args.activation, [&](auto type, auto fixed) {
    using T = decltype(type);
    const int64_t n = args.x.numel();
    const bool aligned =
        packs<T>(args.x.data, 0) && packs<T>(args.dy.data, 0) && packs<T>(args.dx.data, 0);
    launch_each(context, backward_kernel<T, fixed.value>, blocks_of(n, kPack<T>), args.dy.as<T>(),
                args.x.as<T>(), args.dx.as<T>(), n, aligned);
  });
}

// The pack of a matrix that this thread has: where it begins, and how many columns are left.
template <class T>
struct Place {
  int64_t row, column, count;
  __device__ __forceinline__ explicit Place(int64_t width) {
    const int64_t packs_of_row = blocks_of(width, kPack<T>), index = thread_index();
    row = index / packs_of_row;
    column = (index - row * packs_of_row) * kPack<T>;
    count = width - column;
  }
};

template <class T, Activation kActivation>
__global__ void gated_forward_kernel(GatedArgs args, int64_t rows, int64_t width, bool aligned) {
  take_turn();
  const Place<T> at(width);
  if (at.row >= rows) return;
  const int64_t from = at.row * args.row_stride + at.column;
  float gate[kPack<T>], up[kPack<T>];
  load_up_to(args.gate.as<T>() + from, at.count, aligned, gate);
  load_up_to(args.up.as<T>() + from, at.count, aligned, up);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) up[i] *= activate<kActivation>(gate[i]);
  store_up_to(args.y.as<T>() + at.row * width + at.column, up, at.count, aligned);
}

void gated_forward(const Context& context, const GatedArgs& args) {
  with_kernel(args.y.dtype, args.activation, [&](auto type, auto fixed) {
    using T = decltype(type);
    const int64_t rows = args.y.rows(), width = args.y.cols();
    const bool aligned = packs<T>(args.gate.data, args.row_stride) &&
                         packs<T>(args.up.data, args.row_stride) && packs<T>(args.y.data, width);
    launch_each(context, gated_forward_kernel<T, fixed.value>, rows * blocks_of(width, kPack<T>),
                args, rows, width, aligned);
  });
}

template <class T, Activation kActivation>
__global__ void gated_backward_kernel(GatedBackwardArgs args, int64_t rows, int64_t width,
                                      bool aligned) {
  take_turn();
  const Place<T> at(width);
  if (at.row >= rows) return;
  const int64_t from = at.row * args.row_stride + at.column;
  const int64_t to = at.row * args.drow_stride + at.column;
  float gate[kPack<T>], up[kPack<T>], dy[kPack<T>];
  load_up_to(args.gate.as<T>() + from, at.count, aligned, gate);
  load_up_to(args.up.as<T>() + from, at.count, aligned, up);
  load_up_to(args.dy.as<T>() + at.row * width + at.column, at.count, aligned, dy);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    float slope;
    const float value = activate_with_slope<kActivation>(gate[i], slope);
    gate[i] = dy[i] * up[i] * slope;
    up[i] = dy[i] * value;
  }
  store_up_to(args.dgate.as<T>() + to, gate, at.count, aligned);
  store_up_to(args.dup.as<T>() + to, up, at.count, aligned);
}

void gated_backward(const Context& context, const GatedBackwardArgs& args) {
  with_kernel(args.dy.dtype, args.activation, [&](auto type, auto fixed) {
    using T = decltype(type);
    const int64_t rows = args.dy.rows(), width = args.dy.cols();
    const bool aligned = packs<T>(args.gate.data, args.row_stride) &&
                         packs<T>(args.up.data, args.row_stride) &&
                         packs<T>(args.dgate.data, args.drow_stride) &&
                         packs<T>(args.dup.data, args.drow_stride) && packs<T>(args.dy.data, width);
    launch_each(context, gated_backward_kernel<T, fixed.value>, rows * blocks_of(width, kPack<T>),
                args, rows, width, aligned);
  });
}

}  // namespace

extern const ActivationKernels activation_kernels;
const ActivationKernels activation_kernels = {.forward = forward,
                                              .backward = backward,
                                              .gated_forward = gated_forward,
                                              .gated_backward = gated_backward};

}  // namespace llmcore::cuda
