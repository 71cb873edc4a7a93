// Queues: in what order a device works. A GPU's calls return before it has done what they ask for;
// the CPU has no queue, its calls return when all is done.
#pragma once

#include <cstring>

#include "core/buffer.h"
#include "core/device.h"
#include "core/gpu.h"
#include "core/tensor.h"

namespace llmcore {

// All that is done on a GPU goes through one queue: who asks later sees what was asked before.
inline Queue* queue_of(Device device) {
  return device.type == DeviceType::kCpu ? nullptr : gpu::queue_of(device.index);
}

inline void wait(Queue* queue) {
  if (queue != nullptr) gpu::wait(queue);
}

// Between any two places that the queue's device reaches. Of a GPU's queue, the CPU's memory must
// stay and must be neither changed nor read until somebody has waited.
inline void copy_bytes(Queue* queue, void* to, const void* from, int64_t bytes) {
  if (queue == nullptr)
    std::memmove(to, from, static_cast<size_t>(bytes));
  else
    gpu::copy(queue, to, from, bytes);
}

// What follows is done when the call returns.

// The tensor where the CPU sees it: itself, or a copy in `storage`.
Tensor on_cpu(Queue* queue, const Tensor& tensor, Buffer& storage);

// Elements of one tensor to another of as many bytes, on any devices.
void copy_tensor(const Tensor& from, const Tensor& to);
void fill_zeros(const Tensor& tensor);
// The same bytes on `device`; the buffer itself where that is the CPU.
Buffer moved_to(Device device, Buffer buffer);

}  // namespace llmcore
