// Choosing tokens where the logits are: a GPU's alone. On the CPU generate/sample.cpp and
// generate/beam.cpp choose, which say what the settings mean; choices differ from theirs only where
// a probability is within rounding of a border.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

// Why no token could be chosen: a logit is NaN or infinite, or the options leave none.
enum class ChoiceFailure : uint8_t { kNone, kNotFinite, kNothingLeft };

struct Choice {
  int32_t id = 0;
  float log_probability = 0.0f;  // under the model: of the logits as they came, temperature 1
  ChoiceFailure failure = ChoiceFailure::kNone;
};

// How the token of a row is chosen. top_p 0 is greedy.
struct SampleSettings {
  double top_p, min_p;
  double uniform;  // in [0, 1): where in the cumulative distribution, in order of ids
  float temperature;
  int32_t top_k;  // 0: all
  int32_t row;    // of the logits
  int32_t place;  // of the choice
};

// Most tokens that best_tokens() finds, and most classes.
inline constexpr int64_t kMostBest = 2048, kMostClasses = int64_t{1} << 20;

// The most likely tokens of each row, the most likely first, the lower id where they are equal; a
// log-probability may be -inf. A row that holds NaN or +inf has failures instead.
struct BestTokensArgs {
  Tensor logits;   // [N, V]
  Tensor choices;  // int8 [N, count, sizeof(Choice)]
};

// Rows may come in any order, some not at all.
struct SampleTokensArgs {
  Tensor logits;    // [N, V]
  Tensor settings;  // int8 [n, sizeof(SampleSettings)]
  Tensor choices;   // int8 [M, sizeof(Choice)], at their places; the CPU's pinned memory will do
  Tensor ids;       // [M] int32, of the same once more; or none
};

// Ids that the CPU did not know when it wrote the others.
struct FillIdsArgs {
  Tensor from;    // [N] int32: which of `chosen` an id is; -1: it stays
  Tensor chosen;  // [M] int32
  Tensor ids;     // [N] int32, changes
};

struct SamplingKernels {
  void (*best_tokens)(const Context&, const BestTokensArgs&);
  void (*sample_tokens)(const Context&, const SampleTokensArgs&);
  void (*fill_ids)(const Context&, const FillIdsArgs&);
};

// Throw DeviceError on the CPU.
void best_tokens(const Context& context, const BestTokensArgs& args);
void sample_tokens(const Context& context, const SampleTokensArgs& args);
void fill_ids(const Context& context, const FillIdsArgs& args);

}  // namespace llmcore
