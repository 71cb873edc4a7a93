// Context: first argument of every operation and layer call. Which device, which kernels, whose
// memory.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/device.h"
#include "core/random.h"

namespace llmcore {

struct Kernels;  // ops/kernels.h

struct Context {
  Device device;
  const Kernels* kernels = nullptr;
  Arena* arena = nullptr;
  bool training = false;
  bool bfloat16 = false;  // products, attention's too, round their operands to it; sums stay float
  // Randomness of a training step: dropout masks are a function of these, the site and the element.
  uint64_t dropout_seed = 0;
  uint32_t step = 0;
  uint32_t micro_batch = 0;

  // The dropout of site `site` (numbered by the model) in this step; none outside training.
  Dropout dropout(float p, uint32_t site) const {
    if (!training) return {};
    return {p, dropout_seed, (uint64_t{step} << 32) | (uint64_t{micro_batch & 0xfff} << 20) | site};
  }
};

}  // namespace llmcore
