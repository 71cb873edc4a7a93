// Lora: low-rank adapters beside a linear layer (Hu et al. 2021).
//
//   y += (alpha / r) dropout(x) A^T B^T,   A [r, in], B [out, r]
//
// Every part of a Linear that is a target has an A and a B of its own. The A of all parts lie below
// each other, one matrix to the product; the B of each part fills its rows and its columns of a
// block-diagonal matrix. The parts of one Linear share one dropout mask, since they share x.
#pragma once

#include <initializer_list>
#include <vector>

#include "nn/config.h"
#include "nn/params.h"

namespace llmcore {

class Lora {
 public:
  Lora() = default;

  // Beside those of `parts` that `options` target; none where there are no adapters. `site` numbers
  // its dropout.
  Lora(const ParamBuilder& builder, const LoraOptions& options, uint32_t site,
       std::initializer_list<LinearPart> parts, int64_t in);

  explicit operator bool() const { return !blocks_.empty(); }

  // y [N, out] += the adapters' share, from x [N, in].
  void forward(const Context& context, const Tensor& x, const Tensor& y) const;

  // Gradients of A and B from dy [N, out] and x [N, in], and dx [N, in] += theirs.
  void backward(const Context& context, const Tensor& dy, const Tensor& x, const Tensor& dx) const;

 private:
  // One part's rows of y; its columns of the inner matrix are those of its place in blocks_.
  struct Block {
    int64_t first_row, rows;
  };

  Dropout dropout(const Context& context) const { return context.dropout(dropout_, site_); }
  int64_t inner() const { return static_cast<int64_t>(blocks_.size()) * rank_; }  // P r

  // All in the arena's scratch end, or parameters themselves.
  Tensor dropped(const Context& context, const Tensor& x) const;        // [N, in]
  Tensor project(const Context& context, const Tensor& dropped) const;  // [N, P r], scaled
  Tensor block_diagonal(const Context& context) const;                  // [out, P r]
  void add_b_gradient(const Context& context, const Tensor& dy, const Tensor& projected) const;

  int64_t out_ = 0, rank_ = 0;
  float scale_ = 1.0f, dropout_ = 0.0f;
  uint32_t site_ = 0;
  std::vector<Block> blocks_;
  Param a_, b_;
};

}  // namespace llmcore
