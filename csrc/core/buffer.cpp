// Page-aligned allocation and the process's memory count.
#include "core/buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <utility>

#include "core/error.h"
#include "core/forbid.h"
#include "core/gpu.h"

namespace llmcore {
namespace {

constexpr int64_t kPage = 4096, kHugePage = int64_t{2} << 20;

struct Count {
  std::atomic<int64_t> current_bytes{0}, peak_bytes{0};
};
Count counts[2];  // by type of device

Count& count_of(DeviceType type) {
  return counts[static_cast<int>(type)];
}

int64_t round_up(int64_t bytes, int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Small buffers take ordinary pages; large ones are aligned to huge pages by trimming a larger map.
void* map_pages(int64_t bytes, Backing backing) {
  const bool huge = bytes >= kHugePage;
  const int64_t slack = huge ? kHugePage : 0;
  const int reserve = backing == Backing::kAddresses ? MAP_NORESERVE : 0;
  void* base = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | reserve, -1, 0);
  CHECK(base != MAP_FAILED, OutOfMemory, "out of memory: could not allocate ", bytes, " bytes (",
        bytes >> 20, " MiB); use a smaller model or batch");
  if (!huge) return base;
  char* begin = static_cast<char*>(base);
  char* aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(begin), kHugePage));
  if (aligned > begin) munmap(begin, aligned - begin);
  if (begin + slack > aligned) munmap(aligned + bytes, begin + slack - aligned);
#if defined(MADV_HUGEPAGE)
  if (backing == Backing::kMemory) madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
  return aligned;
}

}  // namespace

Buffer::Buffer(int64_t bytes, Backing backing, Device device) : backing_(backing) {
  if (bytes <= 0) return;
  if (device.type != DeviceType::kCpu && backing == Backing::kMemory) {
    device_ = device;
    bytes_ = bytes;
    data_ = gpu::allocate(device.index, bytes);
    detail::count_memory(bytes_, device.type);
    return;
  }
  bytes_ = round_up(bytes + kRedZone, bytes >= kHugePage ? kHugePage : kPage);
  data_ = map_pages(bytes_, backing);
  if (backing == Backing::kAddresses) return;
  forbid(static_cast<char*>(data_) + bytes, bytes_ - bytes);
  detail::count_memory(bytes_, DeviceType::kCpu);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (backing_ == Backing::kMemory) detail::count_memory(-bytes_, device_.type);
  if (device_.type != DeviceType::kCpu) {
    gpu::release(device_.index, data_, bytes_);
    return;
  }
  if (backing_ == Backing::kMemory) allow(data_, bytes_);
  munmap(data_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      backing_(other.backing_),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(backing_, other.backing_);
  std::swap(device_, other.device_);
  return *this;
}

MemoryStats memory_stats(DeviceType type) {
  return {count_of(type).current_bytes.load(), count_of(type).peak_bytes.load()};
}

void reset_peak_memory(DeviceType type) {
  count_of(type).peak_bytes.store(count_of(type).current_bytes.load());
}

void detail::count_memory(int64_t bytes, DeviceType type) {
  Count& count = count_of(type);
  const int64_t now = count.current_bytes.fetch_add(bytes) + bytes;
  int64_t peak = count.peak_bytes.load();
  while (now > peak && !count.peak_bytes.compare_exchange_weak(peak, now)) {
  }
}

}  // namespace llmcore
