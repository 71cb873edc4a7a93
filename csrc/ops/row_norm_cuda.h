// The norm of a row on its way into a product: a block has its mean and deviation, and each element
// is normalised where it is read.
#pragma once

#include <cuda_runtime.h>

#include "cuda/reduce.h"
#include "ops/norm.h"

namespace llmcore::cuda {

class NormOfRow {
 public:
  explicit NormOfRow(const RowNorm& norm)
      : kind_(norm.kind), eps_(norm.eps), weight_(norm.weight.f32()), bias_(norm.bias.f32()) {}

  __device__ __forceinline__ bool wanted() const { return weight_ != nullptr; }

  struct Moments {
    float mean, rstd;
  };

  // By all threads of a block, of the row whose elements read(k) gives; `shared` [32] is free again
  // when the call returns. Sums depend on the width alone.
  template <class Read>
  __device__ __forceinline__ Moments moments(int64_t width, float* shared, Read read) const {
    const auto add = [&](auto term) {
      float sum = 0.0f;
#pragma unroll 4
      for (int64_t k = threadIdx.x; k < width; k += blockDim.x) sum += term(read(k));
      return block_sum(sum, shared) / static_cast<float>(width);
    };
    const float mean = kind_ == NormKind::kLayer ? add([](float x) { return x; }) : 0.0f;
    const float variance = add([&](float x) { return (x - mean) * (x - mean); });
    return {mean, 1.0f / sqrtf(variance + eps_)};
  }

  __device__ __forceinline__ float apply(const Moments& of_row, float x, int64_t k) const {
    const float y = (x - of_row.mean) * of_row.rstd * weight_[k];
    return bias_ == nullptr ? y : y + bias_[k];
  }

 private:
  NormKind kind_;
  float eps_;
  const float *weight_, *bias_;  // [C]
};

}  // namespace llmcore::cuda
