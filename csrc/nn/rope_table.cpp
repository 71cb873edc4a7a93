// Computes rotary frequencies in double precision, once per model.
#include "nn/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "core/queue.h"

namespace llmcore {
namespace {

using std::numbers::pi;

// Llama 3.1: wavelengths short against the original context are kept, long ones divided by the
// factor, those between blended.
double llama3_frequency(double frequency, const RopeScaling& scaling) {
  const double original = static_cast<double>(scaling.original_max_positions);
  const double turns = original * frequency / (2.0 * pi);  // over the original context
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  if (turns > scaling.high_freq_factor) return frequency;
  const double keep =
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1.0 - keep) * frequency / scaling.factor + keep * frequency;
}

// YaRN (Peng et al. 2023, section 3.2): blended linearly in the dimension between those that turn
// beta_fast and beta_slow times over the original context.
double yarn_frequency(double frequency, int64_t i, const Config& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto dimension_turning = [&](double turns) {
    return static_cast<double>(config.rotary_dim) *
           std::log(static_cast<double>(scaling.original_max_positions) / (turns * 2.0 * pi)) /
           (2.0 * std::log(config.rope_theta));
  };
  const double low = std::max(std::floor(dimension_turning(scaling.beta_fast)), 0.0);
  double high = std::min(std::ceil(dimension_turning(scaling.beta_slow)),
                         static_cast<double>(config.rotary_dim - 1));
  if (low == high) high += 0.001;
  const double divide = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
  return frequency / scaling.factor * divide + frequency * (1.0 - divide);
}

double frequency_of(int64_t i, const Config& config) {
  const double frequency = std::pow(
      config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
  switch (config.rope_scaling.kind) {
    case RopeScalingKind::kNone:
      return frequency;
    case RopeScalingKind::kLinear:
      return frequency / config.rope_scaling.factor;
    case RopeScalingKind::kLlama3:
      return llama3_frequency(frequency, config.rope_scaling);
    case RopeScalingKind::kYarn:
      return yarn_frequency(frequency, i, config);
  }
  return frequency;
}

}  // namespace

RopeTable::RopeTable(const Config& config, Device device) {
  if (config.positions != PositionKind::kRope) return;
  const int64_t positions = config.max_positions, half = config.rotary_dim / 2;
  storage_ = Buffer(2 * positions * half * static_cast<int64_t>(sizeof(float)));
  float* data = static_cast<float*>(storage_.data());
  cos = f32_view(data, positions, half);
  sin = f32_view(data + positions * half, positions, half);
  const double magnitude = config.rope_scaling.attention_factor;
  std::vector<double> frequencies(half);
  for (int64_t i = 0; i < half; ++i) frequencies[i] = frequency_of(i, config);
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * frequencies[i];
      cos.f32()[p * half + i] = static_cast<float>(std::cos(angle) * magnitude);
      sin.f32()[p * half + i] = static_cast<float>(std::sin(angle) * magnitude);
    }
  storage_ = moved_to(device, std::move(storage_));
  data = static_cast<float*>(storage_.data());
  cos.data = data;
  sin.data = data + positions * half;
  cos.device = sin.device = device;
}

}  // namespace llmcore
