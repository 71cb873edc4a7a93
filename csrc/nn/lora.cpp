// The two thin products of the adapters; what x becomes between them is computed again in backward.
#include "nn/lora.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace llmcore {
namespace {

// A starts with the variance of peft's uniform distribution, B at zero: y starts unchanged.
float initial_std(int64_t in) {
  return static_cast<float>(1.0 / std::sqrt(3.0 * static_cast<double>(in)));
}

}  // namespace

Lora::Lora(const ParamBuilder& builder, const LoraOptions& options, uint32_t site,
           std::initializer_list<LinearPart> parts, int64_t in)
    : rank_(options.rank), dropout_(options.dropout), site_(site) {
  if (rank_ == 0) return;
  scale_ = static_cast<float>(options.alpha / static_cast<double>(rank_));
  std::vector<LinearPart> targets;
  for (const LinearPart& part : parts) {
    if (std::find(options.targets.begin(), options.targets.end(), part.name) !=
        options.targets.end()) {
      targets.push_back(part);
      blocks_.push_back({.first_row = out_, .rows = part.rows});
    }
    out_ += part.rows;
  }
  for (const LinearPart& part : targets) {
    const Param a = builder.matrix(part.name + ".lora_a", rank_, in, initial_std(in));
    if (!a_) a_ = a;
  }
  for (const LinearPart& part : targets) {
    const Param b = builder.matrix(part.name + ".lora_b", part.rows, rank_, 0.0f);
    if (!b_) b_ = b;
  }
  a_.count = b_.count = static_cast<int>(targets.size());
}

Tensor Lora::dropped(const Context& context, const Tensor& x) const {
  const Dropout mask = dropout(context);
  if (mask.p == 0.0f) return x;
  const Tensor y = context.scratch(x.dim(0), x.dim(1));
  llmcore::dropout(context, {.dropout = mask, .x = x, .y = y});
  return y;
}

Tensor Lora::project(const Context& context, const Tensor& dropped) const {
  const Tensor inner = context.scratch(dropped.dim(0), this->inner());
  matmul(context, {.a = dropped, .b = a_.operand(context), .c = inner, .transpose_b = true});
  scale(context, {.factor = scale_, .x = inner, .y = inner});
  return inner;
}

Tensor Lora::block_diagonal(const Context& context) const {
  const Tensor b = b_.operand(context);
  if (blocks_.size() == 1 && blocks_[0].rows == out_) return b;
  const Tensor whole = context.arena->scratch(b.dtype, out_, inner());
  fill(context, {.value = 0.0f, .y = whole});
  int64_t from = 0;
  for (size_t part = 0; part < blocks_.size(); ++part) {
    const auto [first_row, rows] = blocks_[part];
    copy_rows(context, {.rows = rows,
                        .cols = rank_,
                        .dtype = b.dtype,
                        .x = view_from(b, from).data,
                        .y = view_from(whole, first_row * inner() + part * rank_).data,
                        .x_stride = rank_,
                        .y_stride = inner()});
    from += rows * rank_;
  }
  return whole;
}

void Lora::forward(const Context& context, const Tensor& x, const Tensor& y) const {
  ScratchScope scope(*context.arena);
  matmul(context, {.a = project(context, dropped(context, x)),
                   .b = block_diagonal(context),
                   .c = y,
                   .transpose_b = true,
                   .accumulate = true});
}

// The product of all rows with all columns is as cheap as it is simple; its diagonal is wanted.
void Lora::add_b_gradient(const Context& context, const Tensor& dy, const Tensor& projected) const {
  const Tensor gradient = b_.accumulating_gradient(context);
  if (!gradient) return;
  ScratchScope scope(*context.arena);
  const Tensor whole = context.arena->scratch(DType::kFloat32, out_, inner());
  const Tensor diagonal = context.arena->scratch(DType::kFloat32, gradient.dim(0), gradient.dim(1));
  matmul(context, {.a = dy, .b = projected, .c = whole, .transpose_a = true});
  float* to = diagonal.f32();
  for (size_t part = 0; part < blocks_.size(); ++part) {
    const auto [first_row, rows] = blocks_[part];
    copy_rows(context, {.rows = rows,
                        .cols = rank_,
                        .x = whole.f32() + first_row * inner() + part * rank_,
                        .y = to,
                        .x_stride = inner(),
                        .y_stride = rank_});
    to += rows * rank_;
  }
  add(context, {.a = gradient, .b = diagonal, .y = gradient});
}

void Lora::backward(const Context& context, const Tensor& dy, const Tensor& x,
                    const Tensor& dx) const {
  ScratchScope scope(*context.arena);
  const Tensor input = dropped(context, x);
  add_b_gradient(context, dy, project(context, input));

  const Tensor dinner = context.scratch(dy.dim(0), inner());
  matmul(context, {.a = dy, .b = block_diagonal(context), .c = dinner});
  scale(context, {.factor = scale_, .x = dinner, .y = dinner});
  a_.add_gradient(context, dinner, input);

  const Dropout mask = dropout(context);
  if (mask.p == 0.0f)
    return matmul(context, {.a = dinner, .b = a_.operand(context), .c = dx, .accumulate = true});
  const Tensor share = context.scratch(dx.dim(0), dx.dim(1));
  matmul(context, {.a = dinner, .b = a_.operand(context), .c = share});
  llmcore::dropout(context, {.dropout = mask, .x = share, .residual = dx, .y = dx});
}

}  // namespace llmcore
