// Copies between devices.
#include "core/queue.h"

#include "core/error.h"

namespace llmcore {

void copy_tensor(const Tensor& from, const Tensor& to) {
  CHECK(from.nbytes() == to.nbytes(), ShapeError, "copy: sizes differ, ", from.nbytes(), " and ",
        to.nbytes(), " bytes");
  const Device device = from.device.type == DeviceType::kCpu ? to.device : from.device;
  Queue* const queue = queue_of(device);
  copy_bytes(queue, to.data, from.data, from.nbytes());
  wait(queue);
}

Tensor on_cpu(Queue* queue, const Tensor& tensor, Buffer& storage) {
  if (tensor.device.type == DeviceType::kCpu) return tensor;
  storage = Buffer(tensor.nbytes());
  copy_bytes(queue, storage.data(), tensor.data, tensor.nbytes());
  wait(queue);
  Tensor copy = tensor;
  copy.data = storage.data();
  copy.device = {};
  return copy;
}

void fill_zeros(const Tensor& tensor) {
  if (tensor.device.type == DeviceType::kCpu) {
    std::memset(tensor.data, 0, static_cast<size_t>(tensor.nbytes()));
    return;
  }
  Queue* const queue = queue_of(tensor.device);
  gpu::fill_zeros(queue, tensor.data, tensor.nbytes());
  wait(queue);
}

Buffer moved_to(Device device, Buffer buffer) {
  if (device.type == DeviceType::kCpu) return buffer;
  Buffer moved(buffer.bytes(), Backing::kMemory, device);
  Queue* const queue = queue_of(device);
  copy_bytes(queue, moved.data(), buffer.data(), buffer.bytes());
  wait(queue);
  return moved;
}

}  // namespace llmcore
