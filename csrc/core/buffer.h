// Owned memory: 2 MB-aligned, zero-filled, with huge pages advised, since weights are streamed.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace llmcore {

// Addresses alone serve to plan: they are counted nowhere, however many, and what lies there is
// neither read nor written but for a few numbers.
enum class Backing { kMemory, kAddresses };

class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemory, saying how much was asked for.
  explicit Buffer(int64_t bytes, Backing backing = Backing::kMemory, Device device = {});
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Backing backing_ = Backing::kMemory;
  Device device_;  // addresses alone are the CPU's
};

// Bytes held by all Buffers and Arenas of this process in one type of memory, now and at most since
// the last reset.
struct MemoryStats {
  int64_t current_bytes;
  int64_t peak_bytes;
};
MemoryStats memory_stats(DeviceType type = DeviceType::kCpu);
void reset_peak_memory(DeviceType type = DeviceType::kCpu);

namespace detail {
void count_memory(int64_t bytes, DeviceType type);  // negative: released
}

}  // namespace llmcore
