// The Python Tensor: a core view plus whatever keeps its memory alive.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"
#include "ops/backend.h"
#include "ops/norm.h"

namespace llmcore::bindings {

namespace py = pybind11;

struct PyTensor {
  Tensor view;
  std::shared_ptr<void> owner;
  bool read_only = false;  // memory of a read-only array: no operation may write to it
};

// Fresh zero-filled memory.
PyTensor allocate(const std::vector<int64_t>& shape, DType dtype, Device device);

// A Tensor, a NumPy array, any DLPack array, or nested lists; shares memory where it can.
PyTensor as_tensor(const py::object& source);

// The same for an argument that is updated in place: throws where memory cannot be shared and
// written.
PyTensor in_place_tensor(const py::object& source);

// The tensor inside an optional argument; empty for None.
inline Tensor view_of(const PyTensor* tensor) {
  return tensor == nullptr ? Tensor{} : tensor->view;
}

// The norm of a product's rows; none without a weight.
inline RowNorm row_norm(const PyTensor* weight, const PyTensor* bias, float eps, bool rms) {
  return {.kind = rms ? NormKind::kRms : NormKind::kLayer,
          .eps = eps,
          .weight = view_of(weight),
          .bias = view_of(bias)};
}

// Visits the tensors in an argument: one, one that may be missing, or those that it holds.
template <class Argument, class Visit>
void visit_tensors(const Argument& argument, Visit visit) {
  if constexpr (std::is_same_v<Argument, PyTensor>)
    visit(argument);
  else if constexpr (std::is_same_v<std::decay_t<Argument>, const PyTensor*> ||
                     std::is_same_v<Argument, std::optional<PyTensor>>) {
    if (argument) visit(*argument);
  } else if constexpr (requires { argument.held; }) {
    for (const PyTensor& tensor : argument.held) visit(tensor);
  }
}

// Throws DeviceError unless the tensors among an operation's arguments are on one device.
template <class... Arguments>
void check_one_device(const char* op, const Arguments&... arguments) {
  const PyTensor* first = nullptr;
  const auto see = [&](const PyTensor& tensor) {
    if (first == nullptr) first = &tensor;
    check_same_device(op, first->view.device, tensor.view.device);
  };
  (visit_tensors(arguments, see), ...);
}

// Binds an operation, whose tensors must be on one device.
template <class Result, class... Arguments, class... Extra>
void bind_operation(py::module_& module, const char* name, Result (*operation)(Arguments...),
                    const Extra&... extra) {
  module.def(
      name,
      [name, operation](Arguments... arguments) {
        check_one_device(name, arguments...);
        return operation(std::forward<Arguments>(arguments)...);
      },
      extra...);
}

// The context stateless operations run in: this thread's arena, the tensors' device.
Context op_context(const Tensor& on);

void bind_errors(py::module_& module);
void bind_tensor(py::module_& module);
void bind_machine(py::module_& module);
void bind_generate(py::module_& module);
void bind_model(py::module_& module);
void bind_sampling(py::module_& module);
void bind_beam(py::module_& module);
void bind_matmul(py::module_& module);
void bind_packed(py::module_& module);
void bind_norm(py::module_& module);
void bind_embedding(py::module_& module);
void bind_rope(py::module_& module);
void bind_optimizer(py::module_& module);
void bind_attention(py::module_& module);
void bind_activation(py::module_& module);
void bind_elementwise(py::module_& module);
void bind_cross_entropy(py::module_& module);
void bind_loading(py::module_& module);

}  // namespace llmcore::bindings
