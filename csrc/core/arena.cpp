// Reserves the arena's addresses and moves its two ends.
#include "core/arena.h"

#include <sys/mman.h>

#include <algorithm>

#include "core/buffer.h"
#include "core/error.h"
#include "core/forbid.h"
#include "core/machine.h"

namespace llmcore {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

// The sanitizer keeps a byte for every 8 that are forbidden.
constexpr int64_t kMostSanitized = int64_t{1} << 30;

// Of the 2^47 that a process has on most processors.
constexpr int64_t kMostAddresses = int64_t{1} << 45;

int64_t bytes_to_reserve(Backing backing) {
  if (backing == Backing::kAddresses) return kMostAddresses;
  return kAddressSanitizer ? std::min(memory_bytes(), kMostSanitized) : memory_bytes();
}

}  // namespace

Arena::Arena(Device device, Backing backing)
    : device_(backing == Backing::kAddresses ? Device{} : device), backing_(backing) {
  if (device.type != DeviceType::kCpu) inputs_.emplace(device, backing);
  if (device_.type != DeviceType::kCpu) {
    range_.emplace(device_.index);
    base_ = range_->base();
    reserved_ = range_->bytes();
    return;
  }
  // Some systems limit address space: halve until it fits.
  for (reserved_ = bytes_to_reserve(backing) / kHugePage * kHugePage; reserved_ >= kHugePage * 8;
       reserved_ = reserved_ / 2 / kHugePage * kHugePage) {
    void* base = mmap(nullptr, reserved_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) continue;
    base_ = static_cast<char*>(base);
    if (backing == Backing::kAddresses) return;
#if defined(MADV_HUGEPAGE)
    madvise(base_, reserved_, MADV_HUGEPAGE);
#endif
    forbid(base_, reserved_);
    return;
  }
  throw OutOfMemory("out of memory: could not reserve address space for activations");
}

Arena::~Arena() {
  if (backing_ == Backing::kMemory) detail::count_memory(-peak_bytes(), device_.type);
  if (range_) return;
  if (backing_ == Backing::kMemory) allow(base_, reserved_);
  munmap(base_, reserved_);
}

void Arena::take(int64_t& end, int64_t& peak, int64_t bytes) {
  const int64_t size = (std::max<int64_t>(bytes, 1) + kRedZone + kAlign - 1) / kAlign * kAlign;
  CHECK(keep_ + scratch_ + size <= reserved_, OutOfMemory, "out of memory: activations need ",
        (keep_ + scratch_ + size) >> 20, " MiB, this process may use ", reserved_ >> 20,
        " MiB; use a smaller batch or shorter sequences, or turn recompute on");
  if (end + size > peak) {
    const bool low = &end == &keep_;
    if (range_) range_->back(low ? end + size : peak_keep_, low ? peak_scratch_ : end + size);
    if (backing_ == Backing::kMemory) detail::count_memory(end + size - peak, device_.type);
    peak = end + size;
  }
  end += size;
  highest_scratch_ = std::max(highest_scratch_, scratch_);
}

char* Arena::hand_out(char* data, int64_t bytes) const {
  if (range_ || backing_ == Backing::kAddresses) return data;
  allow(data, bytes);
  fill_with_nan(data, bytes);
  return data;
}

void* Arena::keep_bytes(int64_t bytes) {
  char* data = base_ + keep_;
  take(keep_, peak_keep_, bytes);
  return hand_out(data, bytes);
}

void* Arena::scratch_bytes(int64_t bytes) {
  take(scratch_, peak_scratch_, bytes);
  return hand_out(base_ + reserved_ - scratch_, bytes);
}

void Arena::take_input(Tensor& tensor) {
  if (!inputs_) {
    tensor.data = keep_bytes(tensor.nbytes());
    return;
  }
  const Inputs::Place place = inputs_->take(tensor.nbytes());
  tensor.data = place.device;
  tensor.mirror = place.host;
}

void Arena::release(char* data, int64_t bytes) const {
  if (range_ || backing_ == Backing::kAddresses) return;
  allow(data, bytes);  // the red zones between blocks
  fill_with_nan(data, bytes);
  forbid(data, bytes);
}

void Arena::release_keep(KeepMark mark) {
  release(base_ + mark.keep, keep_ - mark.keep);
  keep_ = mark.keep;
  if (inputs_) inputs_->release(mark.inputs);
}

void Arena::release_scratch(int64_t mark) {
  release(base_ + reserved_ - scratch_, scratch_ - mark);
  scratch_ = mark;
}

void Arena::trim() {
  CHECK(keep_ == 0 && scratch_ == 0, ConfigError, "Arena::trim: the arena is in use");
  detail::count_memory(-peak_bytes(), device_.type);
  peak_keep_ = peak_scratch_ = 0;
  ++trims_;
  if (range_) {
    range_->trim();
    return;
  }
  madvise(base_, reserved_, MADV_DONTNEED);
}

}  // namespace llmcore
