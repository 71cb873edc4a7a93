// The norm of a row on its way into a product: a block has its mean and deviation, and elements are
// normalised where they are read.
#pragma once

#include "cuda/floats.h"
#include "cuda/reduce.h"
#include "ops/norm.h"

namespace llmcore::cuda {

class NormOfRow {
 public:
  explicit NormOfRow(const RowNorm& norm)
      : kind_(norm.kind),
        eps_(norm.eps),
        weight_(norm.weight.f32()),
        bias_(norm.bias.f32()),
        aligned_(packs<float>(weight_, norm.weight.numel()) &&
                 packs<float>(bias_, norm.weight.numel())) {}

  __device__ __forceinline__ bool wanted() const { return weight_ != nullptr; }

  // By one thread of a block, before its turn.
  __device__ __forceinline__ void prefetch_parameters(int64_t width) const {
    if (!wanted()) return;
    prefetch(weight_, width * int64_t{sizeof(float)});
    if (bias_ != nullptr) prefetch(bias_, width * int64_t{sizeof(float)});
  }

  struct Moments {
    float mean, rstd;
  };

  // By all threads of a block, of the row whose elements read(k) gives; `shared` [32] is free again
  // when the call returns. Sums depend on the width alone.
  template <class Read>
  __device__ __forceinline__ Moments moments(int width, float* shared, Read read) const {
    const auto average = [&](auto term) {
      float sum = 0.0f;
#pragma unroll 4
      for (int k = static_cast<int>(threadIdx.x); k < width; k += static_cast<int>(blockDim.x))
        sum += term(read(k));
      return block_sum(sum, shared) / static_cast<float>(width);
    };
    const float mean = kind_ == NormKind::kLayer ? average([](float x) { return x; }) : 0.0f;
    const float variance = average([&](float x) { return (x - mean) * (x - mean); });
    return {mean, 1.0f / sqrtf(variance + eps_)};
  }

  // What kCount elements from k on are multiplied with, and what is added.
  template <int kCount>
  struct Parameters {
    float weight[kCount], bias[kCount];
  };
  template <int kCount>
  __device__ __forceinline__ Parameters<kCount> parameters(int k, int width) const {
    Parameters<kCount> all = {};
    load_up_to(weight_ + k, width - k, aligned_, all.weight);
    if (bias_ != nullptr) load_up_to(bias_ + k, width - k, aligned_, all.bias);
    return all;
  }
  template <int kCount>
  static __device__ __forceinline__ void apply(const Moments& of_row,
                                               const Parameters<kCount>& with, float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      x[i] = (x[i] - of_row.mean) * of_row.rstd * with.weight[i] + with.bias[i];
  }
  __device__ __forceinline__ float apply(const Moments& of_row, float x, int64_t k) const {
    const float y = (x - of_row.mean) * of_row.rstd * weight_[k];
    return bias_ == nullptr ? y : y + bias_[k];
  }

 private:
  NormKind kind_;
  float eps_;
  const float *weight_, *bias_;  // [C]
  bool aligned_;                 // both may be read 16 bytes at a time
};

}  // namespace llmcore::cuda
