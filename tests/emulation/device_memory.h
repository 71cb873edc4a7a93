// The memory of the device, which only its own work may touch.
//
// Addresses come from one range, to which the host has no access while no work runs: what takes a
// device's pointer for one of its own crashes here as it would before a GPU.
#pragma once

#include <cstddef>

namespace emulation {

// Aligned to 256 bytes; null where there is none left.
void* take_device_memory(size_t bytes);
void give_device_memory(void* data);

// Memory from elsewhere that the device may touch from now on, or no longer.
void open_to_device(void* data, size_t bytes);
void forget_range(void* data);

// While one lives, the device's memory is open.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace emulation
