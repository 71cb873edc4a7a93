// What the kernel checks share: random numbers, tensors over std::vector, and how close is close
// enough.
//
// The rule is that of tests/tolerance.py. Each reference is a plain loop in a template: in double
// it gives the exact result, in float the error that is allowed, twice over.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/random.h"
#include "core/tensor.h"
#include "ops/backend.h"

namespace llmcore::checking {

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

template <class T>
using Values = std::vector<T>;

inline int failures = 0;

inline void report(const std::string& name, bool good, double error = 0.0, double allowed = 0.0) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: error %.3g, allowed %.3g\n", name.c_str(), error, allowed);
}

inline Context context() {
  static Arena arena;
  return {.device = {}, .kernels = &kernels_for({}), .arena = &arena};
}

// Uniform in [-1, 1); every call has a stream of its own.
inline Floats random_floats(int64_t count) {
  static uint64_t stream = 0;
  ++stream;
  Floats values(count);
  for (int64_t i = 0; i < count; ++i)
    values[i] = 2.0f * uniform(philox(1, stream, i / 4).lane[i % 4]) - 1.0f;
  return values;
}

inline Ints random_ints(int64_t count, int32_t below) {
  const Floats values = random_floats(count);
  Ints ints(count);
  for (int64_t i = 0; i < count; ++i)
    ints[i] = static_cast<int32_t>((values[i] + 1.0f) * 0.5f * static_cast<float>(below));
  return ints;
}

// What an operation is to write: NaN, so that what it forgets shows.
inline Floats unwritten(int64_t count) {
  return Floats(count, std::nanf(""));
}

template <class... Sizes>
Tensor tensor(const Floats& values, Sizes... sizes) {
  return f32_view(const_cast<float*>(values.data()), sizes...);
}
template <class... Sizes>
Tensor tensor(const Ints& values, Sizes... sizes) {
  return tensor_view(const_cast<int32_t*>(values.data()), DType::kInt32, sizes...);
}

// What dropout multiplies element i by, from core/random.h alone.
inline float dropout_at(const Dropout& dropout, uint64_t i) {
  if (dropout.p == 0.0f) return 1.0f;
  const uint32_t word = philox(dropout.seed, dropout.stream, i / 4).lane[i % 4];
  return word >= dropout_threshold(dropout.p) ? 1.0f / (1.0f - dropout.p) : 0.0f;
}

// `reference(T{})` computes what `actual` should be, in T.
template <class Reference>
void check(const std::string& name, const Floats& actual, Reference reference) {
  const Values<float> same = reference(0.0f);
  const Values<double> exact = reference(0.0);
  double scale = 0.0, same_error = 0.0, error = 0.0;
  bool finite = actual.size() == exact.size();
  for (size_t i = 0; finite && i < exact.size(); ++i) {
    if (std::isinf(exact[i])) {
      finite = static_cast<double>(actual[i]) == exact[i];
      continue;
    }
    finite = std::isfinite(actual[i]);
    scale = std::fmax(scale, std::fabs(exact[i]));
    same_error = std::fmax(same_error, std::fabs(same[i] - exact[i]));
    error = std::fmax(error, std::fabs(actual[i] - exact[i]));
  }
  const double allowed = 2.0 * same_error + 4.0 * 0x1p-24 * scale;
  report(name, finite && error <= allowed, error, allowed);
}

inline void check_equal(const std::string& name, const Floats& actual, const Floats& wanted) {
  double error = 0.0;
  bool good = actual.size() == wanted.size();
  for (size_t i = 0; good && i < wanted.size(); ++i) {
    good = actual[i] == wanted[i];
    if (!good) error = std::fabs(actual[i] - wanted[i]);
  }
  report(name, good, error);
}

// The families, one function each.
void check_matmul();
void check_attention();
void check_rows();    // norms, activations, softmax, losses, elementwise
void check_tables();  // embedding, RoPE, AdamW
void check_loading();
int train(const std::string& model, const std::string& input, const std::string& output);

}  // namespace llmcore::checking
