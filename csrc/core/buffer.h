// Owned memory: 2 MB-aligned, zero-filled, with huge pages advised, since weights are streamed.
#pragma once

#include <cstdint>

namespace llmcore {

// Addresses alone serve to plan: they are counted nowhere, however many, and what lies there is
// neither read nor written but for a few numbers.
enum class Backing { kMemory, kAddresses };

class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemory, saying how much was asked for.
  explicit Buffer(int64_t bytes, Backing backing = Backing::kMemory);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Backing backing_ = Backing::kMemory;
};

// Bytes held by all Buffers and Arenas of this process, now and at most since the last reset.
struct MemoryStats {
  int64_t current_bytes;
  int64_t peak_bytes;
};
MemoryStats memory_stats();
void reset_peak_memory();

namespace detail {
void count_memory(int64_t bytes);  // negative: released
}

}  // namespace llmcore
