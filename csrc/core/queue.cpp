// Copies between devices.
#include "core/queue.h"

#include "core/error.h"

namespace llmcore {

void copy_tensor(const Tensor& from, const Tensor& to) {
  CHECK(from.nbytes() == to.nbytes(), ShapeError, "copy: sizes differ, ", from.nbytes(), " and ",
        to.nbytes(), " bytes");
  const Device device = from.device.type == DeviceType::kCpu ? to.device : from.device;
  const QueuePtr queue = make_queue(device);
  copy_bytes(queue.get(), to.data, from.data, from.nbytes());
  wait(queue.get());
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
  const QueuePtr queue = make_queue(tensor.device);
  gpu::fill_zeros(queue.get(), tensor.data, tensor.nbytes());
  wait(queue.get());
}

Buffer moved_to(Device device, Buffer buffer) {
  if (device.type == DeviceType::kCpu) return buffer;
  Buffer moved(buffer.bytes(), Backing::kMemory, device);
  const QueuePtr queue = make_queue(device);
  copy_bytes(queue.get(), moved.data(), buffer.data(), buffer.bytes());
  wait(queue.get());
  return moved;
}

}  // namespace llmcore
