// Emulates csrc/cuda/shared.h: the dynamic shared memory of a block.
#pragma once

#include "emulation.h"

namespace llmcore::cuda {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::dynamic_shared());
}

}  // namespace llmcore::cuda
