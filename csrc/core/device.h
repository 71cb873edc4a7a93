// Where a tensor lives.
#pragma once

#include <cstdint>

namespace llmcore {

enum class DeviceType : int32_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
};

// The order in which a GPU works (core/queue.h); null on the CPU.
struct Queue;

}  // namespace llmcore
