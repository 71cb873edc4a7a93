// Maps device names to devices and devices to kernel tables.
#include "ops/backend.h"

#include <charconv>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/queue.h"

namespace llmcore {
namespace {

// What there is, said after what there is not.
std::string known_gpus() {
  const size_t count = cuda_info().devices.size();
  if (count == 0) return "there is no GPU";
  if (count == 1) return "there is one GPU, 'cuda:0'";
  return str("there are ", count, " GPUs, 'cuda:0' to 'cuda:", count - 1, "'");
}

}  // namespace

const Kernels& kernels_for(Device device, Backing backing) {
  if (device.type == DeviceType::kCpu) return cpu_kernels();
  const bool known = cuda_kernels() != nullptr;
  CHECK(known && (backing == Backing::kAddresses || cuda_unavailable_reason().empty()), DeviceError,
        "device 'cuda' cannot be used: ", cuda_unavailable_reason());
  if (backing == Backing::kAddresses) return *cuda_kernels();
  CHECK(static_cast<size_t>(device.index) < cuda_info().devices.size(), DeviceError,
        "device 'cuda:", device.index, "' does not exist: ", known_gpus());
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

Device device_from_name(const std::string& name, Backing backing) {
  if (name == "cpu") return {};
  const std::string prefix = "cuda:";
  Device device{DeviceType::kCuda, 0};
  bool known = name == "cuda";
  if (name.starts_with(prefix)) {
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + prefix.size(), end, device.index);
    known = parsed.ec == std::errc() && parsed.ptr == end && device.index >= 0;
  }
  CHECK(known, DeviceError, "device must be 'cpu', 'cuda' or 'cuda:<index>', got '", name, "'; ",
        known_gpus());
  kernels_for(device, backing);  // throws with the reason where it cannot be used
  return device;
}

std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : str("cuda:", device.index);
}

void check_same_device(const char* op, Device one, Device other) {
  CHECK(one.type == other.type && one.index == other.index, DeviceError, op,
        ": all tensors must be on one device, got ", device_name(one), " and ", device_name(other),
        "; move them with .to(device=...)");
}

}  // namespace llmcore
