// Copies what a check reads from a GPU.
#include "ops/checks.h"

#include "core/queue.h"

namespace llmcore {

HostInts::HostInts(const Context& context, const Tensor& tensor)
    : data_(tensor.host<const int32_t>()) {
  if (data_ != nullptr || tensor.data == nullptr) return;
  copy_.resize(static_cast<size_t>(tensor.numel()));
  copy_bytes(context.queue, copy_.data(), tensor.data, tensor.nbytes());
  wait(context.queue);
  data_ = copy_.data();
}

}  // namespace llmcore
