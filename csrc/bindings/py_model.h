// The Python model: a Transformer and the way arguments reach it.
#pragma once

#include "bindings/py_tensor.h"
#include "nn/transformer.h"

namespace llmcore::bindings {

using ModelPtr = std::shared_ptr<Transformer>;

Config config_from_dict(const py::dict& values);

// Views of a llmcore.Batch's arrays, and what keeps them alive.
struct PyBatch {
  explicit PyBatch(const py::object& batch);
  Batch view;
  std::vector<PyTensor> tensors;
};

// An int32 NumPy array or Tensor, in the memory of the CPU; None becomes empty.
PyTensor int32_tensor(const py::object& source, const char* name);

// Runs `work` with the model's lock held and the GIL released. The lock is taken without the GIL,
// so that a thread waiting for the model does not stop the one that has it.
template <class Work>
auto exclusively(Transformer& model, Work work) {
  py::gil_scoped_release release;
  std::lock_guard<std::mutex> guard(model.mutex());
  return work();
}

// The same with two models, which may be the same, or with one where `other` is null.
template <class Work>
auto exclusively(Transformer& model, Transformer* other, Work work) {
  if (other == nullptr || other == &model) return exclusively(model, work);
  py::gil_scoped_release release;
  std::scoped_lock guard(model.mutex(), other->mutex());
  return work();
}

}  // namespace llmcore::bindings
