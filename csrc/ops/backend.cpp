// Maps device names to devices and devices to kernel tables.
#include "ops/backend.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/queue.h"

namespace llmcore {

const Kernels& kernels_for(Device device) {
  if (device.type == DeviceType::kCpu) return cpu_kernels();
  CHECK(cuda_kernels() != nullptr, DeviceError,
        "device 'cuda' cannot be used: ", cuda_unavailable_reason());
  return *cuda_kernels();
}

Context thread_context(Device device) {
  struct Place {
    Device device;
    Arena arena;
    explicit Place(Device where) : device(where), arena(where) {}
  };
  thread_local std::vector<std::unique_ptr<Place>> places;
  const Kernels& kernels = kernels_for(device);
  for (const auto& place : places)
    if (place->device.type == device.type && place->device.index == device.index)
      return {
          .device = device, .kernels = &kernels, .arena = &place->arena, .queue = queue_of(device)};
  places.push_back(std::make_unique<Place>(device));
  return thread_context(device);
}

Device device_from_name(const std::string& name) {
  if (name == "cpu") return {};
  if (name.rfind("cuda", 0) == 0) {
    char* end = nullptr;
    const long index = name.size() > 5 && name[4] == ':' ? std::strtol(&name[5], &end, 10) : 0;
    if (name == "cuda" || (end != nullptr && *end == '\0' && index >= 0)) {
      const Device device{DeviceType::kCuda, static_cast<int32_t>(index)};
      kernels_for(device);  // throws with the reason where CUDA cannot be used
      return device;
    }
  }
  throw DeviceError(str("device must be 'cpu', 'cuda' or 'cuda:<index>', got '", name, "'"));
}

std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : str("cuda:", device.index);
}

}  // namespace llmcore
