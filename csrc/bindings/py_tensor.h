// The Python Tensor: a core view plus whatever keeps its memory alive.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore::bindings {

namespace py = pybind11;

struct PyTensor {
  Tensor view;
  std::shared_ptr<void> owner;
};

// Fresh zero-filled memory.
PyTensor allocate(const std::vector<int64_t>& shape, DType dtype, Device device);

// A Tensor, a NumPy array, any DLPack array, or nested lists; shares memory where it can.
PyTensor as_tensor(const py::object& source);

// The tensor inside an optional argument; empty for None.
inline Tensor view_of(const PyTensor* tensor) { return tensor == nullptr ? Tensor{} : tensor->view; }

// The context stateless operations run in: this thread's arena, the tensors' device.
Context op_context(const Tensor& on);

void bind_errors(py::module_& module);
void bind_tensor(py::module_& module);
void bind_machine(py::module_& module);
void bind_matmul(py::module_& module);
void bind_norm(py::module_& module);
void bind_activation(py::module_& module);
void bind_elementwise(py::module_& module);
void bind_cross_entropy(py::module_& module);

}  // namespace llmcore::bindings
