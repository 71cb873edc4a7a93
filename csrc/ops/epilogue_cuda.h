// What becomes of a product's sums, in the order of ops/matmul.h, where no library does it.
#pragma once

#include "cuda/floats.h"
#include "cuda/philox.h"
#include "ops/activation_cuda.h"
#include "ops/matmul.h"

namespace llmcore::cuda {

// Pointers are null for what is not wanted. All matrices are [M, N] and of C's type.
struct Epilogue {
  void* c;
  const float* bias;  // [N]
  void* pre_activation;
  Activation activation, gate_activation;
  const void* gate_input;
  void* gate_output;
  Dropout dropout;
  const void* residual;
  int64_t n, stride;  // from one row of C to the next: n, but where C and a bias are all there is

  explicit Epilogue(const MatmulArgs& args)
      : c(args.c.data),
        bias(args.bias.f32()),
        pre_activation(args.pre_activation.data),
        activation(args.activation),
        gate_activation(args.gate_activation),
        gate_input(args.gate_input.data),
        gate_output(args.gate_output.data),
        dropout(args.dropout),
        residual(args.accumulate ? args.c.data : args.residual.data),
        n(args.c.dim(-1)),
        stride(args.c_stride > 0 ? args.c_stride : n) {}

  // Nothing between bias and residual.
  bool is_linear() const {
    return pre_activation == nullptr && activation == Activation::kNone && gate_input == nullptr &&
           !(dropout.p > 0.0f);
  }
  bool is_empty() const { return is_linear() && bias == nullptr && residual == nullptr; }

  // Whether kPack<T> elements of a row may be read and written at once.
  template <class T>
  bool packs() const {
    for (const void* p : {static_cast<const void*>(c), static_cast<const void*>(bias),
                          static_cast<const void*>(pre_activation), gate_input,
                          static_cast<const void*>(gate_output), residual})
      if (!cuda::packs<T>(p, n)) return false;
    return cuda::packs<T>(c, stride);
  }
};

// One element, or whole packs.
template <class T, int kCount>
__device__ __forceinline__ void load_elements(const T* p, float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    x[0] = as_float(*p);
  } else {
    static_assert(kCount % kPack<T> == 0);
#pragma unroll
    for (int i = 0; i < kCount; i += kPack<T>) {
      float pack[kPack<T>];
      load_pack(p + i, pack);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) x[i + j] = pack[j];
    }
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_elements(T* p, const float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    *p = from_float<T>(x[0]);
  } else {
    static_assert(kCount % kPack<T> == 0);
#pragma unroll
    for (int i = 0; i < kCount; i += kPack<T>)
      store_pack(p + i, reinterpret_cast<const float(&)[kPack<T>]>(x[i]));
  }
}

template <Activation kActivation, int kCount>
__device__ __forceinline__ void activate_all(float (&x)[kCount], float (&slope)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = activate_with_slope<kActivation>(x[i], slope[i]);
}
template <int kCount>
__device__ __forceinline__ void activate_all(Activation activation, float (&x)[kCount],
                                             float (&slope)[kCount]) {
  switch (activation) {
    case Activation::kNone:
      return activate_all<Activation::kNone>(x, slope);
    case Activation::kRelu:
      return activate_all<Activation::kRelu>(x, slope);
    case Activation::kGelu:
      return activate_all<Activation::kGelu>(x, slope);
    case Activation::kGeluTanh:
      return activate_all<Activation::kGeluTanh>(x, slope);
    case Activation::kSilu:
      return activate_all<Activation::kSilu>(x, slope);
    case Activation::kTanh:
      return activate_all<Activation::kTanh>(x, slope);
  }
}

// What is added to C's elements at i, i + 1, ... of memory, in column `col` and those after it: it
// can come long before the sums. T is C's type.
template <int kCount>
struct Terms {
  float bias[kCount] = {}, residual[kCount] = {};
};
template <class T, int kCount>
__device__ __forceinline__ Terms<kCount> terms_of(const Epilogue& to, int64_t i, int64_t col) {
  Terms<kCount> terms;
  if (to.bias != nullptr) load_elements(to.bias + col, terms.bias);
  if (to.residual != nullptr) load_elements(static_cast<const T*>(to.residual) + i, terms.residual);
  return terms;
}

// The sums x of the same elements, to the end.
template <class T, int kCount>
__device__ __forceinline__ void finish(const Epilogue& to, int64_t i, const Terms<kCount>& terms,
                                       float (&x)[kCount]) {
  float other[kCount], slope[kCount] = {}, kept[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j) x[j] += terms.bias[j];
  if (to.pre_activation != nullptr) store_elements(static_cast<T*>(to.pre_activation) + i, x);
  if (to.activation != Activation::kNone) activate_all(to.activation, x, slope);
  const bool drops = to.dropout.p > 0.0f;
  if (drops) dropout_factors(to.dropout, static_cast<uint64_t>(i), kept);
  if (to.gate_input != nullptr) {
    load_elements(static_cast<const T*>(to.gate_input) + i, other);
    activate_all(to.gate_activation, other, slope);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      x[j] *= slope[j];
      if (drops) other[j] *= kept[j];
    }
    if (to.gate_output != nullptr) store_elements(static_cast<T*>(to.gate_output) + i, other);
  }
  if (drops) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] *= kept[j];
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) x[j] += terms.residual[j];
  store_elements(static_cast<T*>(to.c) + i, x);
}

}  // namespace llmcore::cuda
