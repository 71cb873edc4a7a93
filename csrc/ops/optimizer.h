// AdamW (Loshchilov and Hutter 2019) on flat buffers, and the global gradient norm.
//
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   p = p - lr weight_decay p - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//
// Evaluated in the order of torch.optim.AdamW, so that trajectories differ by rounding alone.
#pragma once

#include <math.h>

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

// Settings are double: 1 - beta2 of a float 0.999 would be off by one part in 80,000.
struct AdamWSettings {
  double lr = 0.0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
};

// The scalars of one update, rounded once.
struct AdamWFactors {
  float grad_scale;  // multiplies the gradient first: clipping, division by the target count
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float keep;             // 1 - lr weight_decay
  float step_size;        // lr / (1 - beta1^step)
  float root_correction;  // sqrt(1 - beta2^step)
  float eps;
};

LLMCORE_INLINE AdamWFactors adamw_factors(const AdamWSettings& s, int64_t step, float grad_scale) {
  const double count = static_cast<double>(step);
  return {.grad_scale = grad_scale,
          .beta1 = static_cast<float>(s.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - s.beta2),
          .keep = static_cast<float>(1.0 - s.lr * s.weight_decay),
          .step_size = static_cast<float>(s.lr / (1.0 - pow(s.beta1, count))),
          .root_correction = static_cast<float>(sqrt(1.0 - pow(s.beta2, count))),
          .eps = static_cast<float>(s.eps)};
}

// What a training step is told. On a GPU it is an input (core/inputs.h), so that a captured step
// can be told something else each time.
struct StepSettings {
  AdamWSettings adamw;
  double max_grad_norm;
  double max_loss, max_norm;    // no update where loss or norm is above these or is not finite
  uint64_t dropout_stream = 0;  // of the step (core/context.h)
};

// What a training step finds out and decides, in the device's memory: nobody waits for it.
struct StepState {
  int64_t updates;          // so far; all else is of one step
  double loss_sum, weight;  // of all micro-batches: of their losses, each times its weight
  double square_sum;        // of the gradients
  int32_t skipped;
  AdamWFactors factors;
};

// From the sums to the update: whether there is one, and by which factors.
LLMCORE_INLINE void decide(const StepSettings& settings, StepState& state) {
  const double loss = state.loss_sum / state.weight, norm = sqrt(state.square_sum);
  // Written so that NaN is skipped too; infinity is above the largest double.
  constexpr double kLargest = 1.7976931348623157e308;
  state.skipped = !(loss <= kLargest && loss >= -kLargest && norm <= kLargest &&
                    loss <= settings.max_loss && norm <= settings.max_norm);
  if (state.skipped) return;
  const double clip = norm > settings.max_grad_norm ? settings.max_grad_norm / (norm + 1e-6) : 1.0;
  state.factors = adamw_factors(settings.adamw, ++state.updates, static_cast<float>(clip));
}

// Elements [begin, end) of flat buffers, and whether weight decay applies to them.
struct FlatPart {
  int64_t begin, end;
  bool decay;
};

// Parts in the device's memory, in ascending order; what lies between them is not touched. None:
// all of the buffers is one, with weight decay.
struct FlatParts {
  const FlatPart* first = nullptr;
  int64_t count = 0;
};

// On a GPU no part is longer: a block takes one, so that one launch takes all.
inline constexpr int64_t kFlatPart = int64_t{1} << 14;

struct AdamWArgs {
  AdamWFactors factors = {};
  const StepState* state = nullptr;  // decides instead of `factors`; in the device's memory
  FlatParts parts;
  Tensor param, m, v;  // [n], updated in place
  Tensor grad;         // [n]
};

struct SquareSumArgs {
  Tensor x;  // [n]
  FlatParts parts;
  double* partial = nullptr;  // sums of blocks or parts, provided by the checking layer
  double* sum = nullptr;      // to which the sum of all is added
};

struct WeightedSumArgs {
  Tensor losses, weights;      // [R]
  StepState* state = nullptr;  // to whose loss_sum and weight theirs are added
};

struct DecideArgs {
  const StepSettings* settings = nullptr;  // both in the device's memory
  StepState* state = nullptr;
};

// On the CPU the sum of parts that touch is taken in blocks of this many elements, then over the
// blocks in order.
inline constexpr int64_t kSquareSumBlock = int64_t{1} << 16;

struct OptimizerKernels {
  void (*adamw)(const Context&, const AdamWArgs&);
  void (*square_sum)(const Context&, const SquareSumArgs&);
  void (*begin)(const Context&, StepState*);
  void (*weighted_sum)(const Context&, const WeightedSumArgs&);
  void (*decide)(const Context&, const DecideArgs&);
};

// Throws ConfigError for a setting out of its range.
void check_adamw(const AdamWSettings& settings, int64_t step);
void adamw(const Context& context, const AdamWArgs& args);

// Sum of squares, in double: the square root of it is the gradient norm. The first adds it to a
// number in the device's memory, the second waits for it.
void add_square_sum(const Context& context, SquareSumArgs args);
double square_sum(const Context& context, const Tensor& x);

// What happens between a step's passes and its updates.
void begin_step(const Context& context, StepState* state);  // all but `updates` becomes zero
void weighted_sum(const Context& context, const WeightedSumArgs& args);
void decide_step(const Context& context, const DecideArgs& args);
StepState read_state(const Context& context, const StepState* state);  // waits

}  // namespace llmcore
