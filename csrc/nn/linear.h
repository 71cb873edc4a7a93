// Linear: y = x W^T + b, with adapters beside it and what follows it fused in. Knows the format
// weights are stored in.
#pragma once

#include <initializer_list>

#include "nn/config.h"
#include "nn/lora.h"
#include "nn/params.h"
#include "ops/matmul.h"

namespace llmcore {

class Linear {
 public:
  // `lora_site` numbers the dropout of the adapters that `lora` asks for.
  Linear(const ParamBuilder& builder, std::initializer_list<LinearPart> parts, int64_t in,
         bool bias, float std, const LoraOptions& lora = {}, uint32_t lora_site = 0);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  bool has_adapters() const { return static_cast<bool>(lora_); }

  // y [N, out] from x [N, in]. `fused` carries norm, activation, dropout and residual.
  void forward(const Context& context, const Tensor& x, const Tensor& y,
               MatmulArgs fused = {}) const;

  // From dy [N, out] and the input x [N, in] of the forward pass: parameter gradients, then
  // dx [N, in]. `fused` carries accumulate, or the derivative of what came before x. Without
  // adapters dx may be x, or x may be gate_output: made along with dx, then used. The gradients may
  // come beside what follows (core/beside.h): whoever calls keeps dy and x until it has joined.
  void backward(const Context& context, const Tensor& dy, const Tensor& x, const Tensor& dx,
                MatmulArgs fused = {}) const;

 private:
  int64_t in_ = 0, out_ = 0;
  Param weight_, bias_;
  Lora lora_;
};

// Projections that write into the residual stream start smaller, so that its variance does not grow
// with depth (Radford et al. 2019, section 2.3).
float residual_std(const Config& config);

}  // namespace llmcore
