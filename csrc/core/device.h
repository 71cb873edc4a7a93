// Where a tensor lives.
#pragma once

#include <cstdint>

namespace llmcore {

enum class DeviceType : int32_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
};

}  // namespace llmcore
