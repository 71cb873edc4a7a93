// Norm: layer norm or RMS norm with its parameters.
#pragma once

#include "nn/config.h"
#include "nn/params.h"
#include "ops/norm.h"

namespace llmcore {

class Norm {
 public:
  struct Saved {
    Tensor x;     // [N, C]
    Tensor mean;  // [N]; layer norm only
    Tensor rstd;  // [N]
  };

  // Over the model's width, as the config says; or as `shape` does.
  Norm(const ParamBuilder& builder, const Config& config);
  struct Shape {
    NormKind kind;
    int64_t size;
    float eps;
    bool bias;
  };
  Norm(const ParamBuilder& builder, const Shape& shape);

  // y [N, C] from x [N, C]; y may be x where nothing is saved for backward.
  void forward(const Context& context, const Tensor& x, const Tensor& y, Saved& saved) const;

  // The same as part of a matrix product, where nothing is saved.
  RowNorm of_rows() const;

  // The same y again, from what was saved.
  void forward_again(const Context& context, const Saved& saved, const Tensor& y) const;

  // dx = or, with accumulate, dx +=; dx may be dy.
  void backward(const Context& context, const Tensor& dy, const Saved& saved, const Tensor& dx,
                bool accumulate) const;

 private:
  NormKind kind_;
  float eps_;
  Param weight_, bias_;
};

}  // namespace llmcore
