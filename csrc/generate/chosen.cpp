// Memory and turns of the choices of two passes.
#include "generate/chosen.h"

namespace llmcore {

Chosen::Chosen(Device device, int64_t most)
    : device_(device),
      most_(most),
      choices_(static_cast<Choice*>(
          gpu::allocate_pinned(2 * most * static_cast<int64_t>(sizeof(Choice))))),
      ids_(2 * most * static_cast<int64_t>(sizeof(int32_t)), Backing::kMemory, device) {}

Chosen::~Chosen() {
  for (gpu::Event& done : done_) done.settle();
  gpu::release_pinned(choices_, choices().nbytes());
}

Tensor Chosen::choices() const {
  Tensor tensor = tensor_view(choices_, DType::kInt8, 2 * most_, sizeof(Choice));
  tensor.device = device_;
  return tensor;
}

Tensor Chosen::ids() const {
  Tensor tensor = tensor_view(ids_.data(), DType::kInt32, 2 * most_);
  tensor.device = device_;
  return tensor;
}

void Chosen::asked(Queue* queue, int64_t rows) {
  done_[asked_ % 2].record(queue);
  rows_[asked_ % 2] = rows;
  ++asked_;
}

std::vector<Choice> Chosen::collect() {
  const int64_t turn = collected_++ % 2;
  done_[turn].wait();
  const Choice* first = choices_ + turn * most_;
  return {first, first + rows_[turn]};
}

}  // namespace llmcore
