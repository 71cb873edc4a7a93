// Context: first argument of every operation and layer call. Which device, which kernels, whose
// memory.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/device.h"
#include "core/random.h"

namespace llmcore {

class Beside;    // core/beside.h
struct Kernels;  // ops/kernels.h

struct Context {
  Device device;
  const Kernels* kernels = nullptr;
  Arena* arena = nullptr;
  Queue* queue = nullptr;  // of a GPU
  // What layers hand one another: float32, on a GPU also bfloat16. Statistics, losses, parameters
  // and their gradients are float32 all the same.
  DType activations = DType::kFloat32;
  bool training = false;
  bool bfloat16 = false;  // products, attention's too, round their operands to it; sums stay float
  // All parameters as products read them, in the layout of the flat buffers: rounded to bfloat16,
  // once for what a context is for. None: products read the parameters themselves.
  Tensor rounded_weights;
  Beside* beside = nullptr;  // where what nobody waits for yet may be asked for; none: the queue
  // Randomness of a training step: dropout masks are a function of these, the site and the element.
  uint64_t dropout_seed = 0;
  uint32_t step = 0;
  uint32_t micro_batch = 0;
  // On a GPU, where kernels find dropout_stream(step); null: it is in each mask's stream.
  const uint64_t* step_stream = nullptr;

  static uint64_t dropout_stream(uint32_t step) { return uint64_t{step} << 32; }

  // Activations in the arena.
  template <class... Sizes>
  Tensor keep(Sizes... sizes) const {
    return arena->keep(activations, sizes...);
  }
  template <class... Sizes>
  Tensor scratch(Sizes... sizes) const {
    return arena->scratch(activations, sizes...);
  }

  // Inputs written since the last call reach the device before what is asked of it next.
  void upload() const { arena->upload(queue); }

  // The dropout of site `site` (numbered by the model) in this step; none outside training.
  Dropout dropout(float p, uint32_t site) const {
    if (!training) return {};
    const uint64_t place = (uint64_t{micro_batch & 0xfff} << 20) | site;
    if (step_stream != nullptr) return {p, dropout_seed, place, step_stream};
    return {p, dropout_seed, dropout_stream(step) | place};
  }
};

}  // namespace llmcore
