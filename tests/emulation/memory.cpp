// Allocations of both kinds, and copies, which wait in their stream.
#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "device_memory.h"
#include "streams.h"

namespace emulation {
namespace {

struct Range {
  size_t bytes;
  cudaMemoryType type;
};

// Never destroyed, so that memory may be freed at the very end, or never.
std::map<const char*, Range>& ranges = *new std::map<const char*, Range>;
size_t used = 0;

void* pinned(size_t bytes) {
  void* data = nullptr;
  return posix_memalign(&data, 256, bytes) == 0 ? data : nullptr;
}

cudaError_t allocate(void** pointer, size_t bytes, cudaMemoryType type) {
  *pointer = nullptr;
  if (const cudaError_t error = refuse_capture(nullptr)) return error;
  if (bytes == 0) return cudaSuccess;
  const bool on_device = type == cudaMemoryTypeDevice;
  if (on_device && !take_memory(bytes)) return cudaErrorMemoryAllocation;
  *pointer = on_device ? take_device_memory(bytes) : pinned(bytes);
  if (*pointer == nullptr) {
    if (on_device) give_memory(bytes);
    return cudaErrorMemoryAllocation;
  }
  fill_new(*pointer, bytes);
  add_range(*pointer, bytes, type);
  return outcome();
}

// Waits for all work, which may still use it.
cudaError_t release(void* pointer, cudaMemoryType type) {
  if (pointer == nullptr) return cudaSuccess;
  if (const cudaError_t error = refuse_capture(nullptr)) return error;
  drain_all();
  const size_t bytes = remove_range(pointer, type);
  if (bytes == 0) return cudaErrorInvalidValue;
  if (type == cudaMemoryTypeDevice) {
    give_memory(bytes);
    give_device_memory(pointer);
  } else {
    std::free(pointer);
  }
  return outcome();
}

struct Rows {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch, width, height;

  void copy() const {
    for (size_t i = 0; i < height; ++i)
      std::memmove(static_cast<char*>(to) + i * to_pitch,
                   static_cast<const char*>(from) + i * from_pitch, width);
  }
};

// Copies take place in their turn. Of memory that is not pinned CUDA promises no more, though it
// often has read or written it when the call returns.
cudaError_t copy(Rows rows, cudaMemcpyKind kind, cudaStream_t stream, bool blocking) {
  if (rows.width == 0 || rows.height == 0) return cudaSuccess;
  if (rows.width > rows.to_pitch || rows.width > rows.from_pitch) return cudaErrorInvalidValue;
  bool good = true;
  const size_t before = rows.height - 1;
  const auto to = type_of(rows.to, before * rows.to_pitch + rows.width, good);
  const auto from = type_of(rows.from, before * rows.from_pitch + rows.width, good);
  const bool to_device = to == cudaMemoryTypeDevice, from_device = from == cudaMemoryTypeDevice;
  const auto actual = static_cast<cudaMemcpyKind>(2 * from_device + to_device);
  if (!good || (kind != cudaMemcpyDefault && kind != actual)) return cudaErrorInvalidValue;
  const auto queue = queue_of(stream);
  if (const auto error = enqueue(stream, [rows] { rows.copy(); })) return error;
  if (blocking && actual != cudaMemcpyDeviceToDevice) drain(*queue, queue->queued);
  return outcome();
}

}  // namespace

size_t device_memory() {
  static const size_t bytes = [] {
    const char* mebibytes = std::getenv("LLMCORE_EMULATED_MEMORY");
    return size_t{mebibytes == nullptr ? 4096 : std::stoul(mebibytes)} << 20;
  }();
  return bytes;
}

size_t used_memory() {
  return used;
}

bool take_memory(size_t bytes) {
  if (bytes > device_memory() - used) return false;
  used += bytes;
  return true;
}

void give_memory(size_t bytes) {
  used -= bytes;
}

void add_range(void* data, size_t bytes, cudaMemoryType type) {
  ranges[static_cast<const char*>(data)] = {bytes, type};
}

size_t remove_range(void* data, cudaMemoryType type) {
  const auto found = ranges.find(static_cast<const char*>(data));
  if (found == ranges.end() || found->second.type != type) return 0;
  const size_t bytes = found->second.bytes;
  ranges.erase(found);
  return bytes;
}

cudaMemoryType type_of(const void* data, size_t bytes, bool& good) {
  const char* first = static_cast<const char*>(data);
  auto found = ranges.upper_bound(first);
  if (found == ranges.begin()) return cudaMemoryTypeUnregistered;
  --found;
  const char* end = found->first + found->second.bytes;
  if (first >= end) return cudaMemoryTypeUnregistered;
  // Mapped ranges may continue each other.
  for (auto next = std::next(found); first + bytes > end && next != ranges.end() &&
                                     next->first == end && next->second.type == found->second.type;
       ++next)
    end += next->second.bytes;
  if (first + bytes > end) good = false;
  return found->second.type;
}

void fill_new([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if !defined(NDEBUG)
  const Access open;
  std::memset(data, 0xff, bytes);
#endif
}

}  // namespace emulation

using namespace emulation;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const Lock held = lock();
  return remember(allocate(pointer, bytes, cudaMemoryTypeDevice));
}

cudaError_t cudaFree(void* pointer) {
  const Lock held = lock();
  return remember(release(pointer, cudaMemoryTypeDevice));
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned) {
  const Lock held = lock();
  return remember(allocate(pointer, bytes, cudaMemoryTypeHost));
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  return cudaMallocHost(pointer, bytes, flags);
}

cudaError_t cudaFreeHost(void* pointer) {
  const Lock held = lock();
  return remember(release(pointer, cudaMemoryTypeHost));
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock held = lock();
  *total = device_memory();
  *free = device_memory() - used;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Lock held = lock();
  bool good = true;
  const cudaMemoryType type = type_of(pointer, 1, good);
  void* address = const_cast<void*>(pointer);
  *attributes = {type, type == cudaMemoryTypeUnregistered ? -1 : 0,
                 type == cudaMemoryTypeUnregistered ? nullptr : address,
                 type == cudaMemoryTypeDevice ? nullptr : address};
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Lock held = lock();
  if (const cudaError_t error = refuse_capture(nullptr)) return remember(error);
  return remember(copy({to, bytes, from, bytes, bytes, 1}, kind, nullptr, true));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Lock held = lock();
  return remember(copy({to, bytes, from, bytes, bytes, 1}, kind, stream, false));
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const Lock held = lock();
  return remember(copy({to, to_pitch, from, from_pitch, width, height}, kind, stream, false));
}

cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return cudaMemsetAsync(pointer, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  const Lock held = lock();
  bool good = true;
  if (bytes == 0) return cudaSuccess;
  if (type_of(pointer, bytes, good) == cudaMemoryTypeUnregistered || !good)
    return remember(cudaErrorInvalidValue);
  return remember(enqueue(stream, [=] { std::memset(pointer, value, bytes); }));
}
