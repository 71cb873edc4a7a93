// Activation functions and gated units for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/activation.h"

namespace llmcore::bindings {
namespace {

void forward(const std::string& activation, const PyTensor& x, const PyTensor& y) {
  const Activation kind = activation_from_name(activation.c_str());
  py::gil_scoped_release release;
  activation_forward(op_context(x.view), {.activation = kind, .x = x.view, .y = y.view});
}

void backward(const std::string& activation, const PyTensor& dy, const PyTensor& x,
              const PyTensor& dx) {
  const Activation kind = activation_from_name(activation.c_str());
  py::gil_scoped_release release;
  activation_backward(op_context(x.view),
                      {.activation = kind, .dy = dy.view, .x = x.view, .dx = dx.view});
}

void gate_forward(const std::string& activation, const PyTensor& gate, const PyTensor& up,
                  int64_t row_stride, const PyTensor& y) {
  const Activation kind = activation_from_name(activation.c_str());
  py::gil_scoped_release release;
  gated_forward(op_context(gate.view), {.activation = kind,
                                        .gate = gate.view,
                                        .up = up.view,
                                        .row_stride = row_stride,
                                        .y = y.view});
}

void gate_backward(const std::string& activation, const PyTensor& dy, const PyTensor& gate,
                   const PyTensor& up, const PyTensor& dgate, const PyTensor& dup,
                   int64_t row_stride, int64_t drow_stride) {
  const Activation kind = activation_from_name(activation.c_str());
  py::gil_scoped_release release;
  gated_backward(op_context(gate.view), {.activation = kind,
                                         .dy = dy.view,
                                         .gate = gate.view,
                                         .up = up.view,
                                         .dgate = dgate.view,
                                         .dup = dup.view,
                                         .row_stride = row_stride,
                                         .drow_stride = drow_stride});
}

}  // namespace

void bind_activation(py::module_& module) {
  bind_operation(module, "activation_forward", &forward, py::kw_only(), py::arg("activation"),
                 py::arg("x"), py::arg("y"));
  bind_operation(module, "activation_backward", &backward, py::kw_only(), py::arg("activation"),
                 py::arg("dy"), py::arg("x"), py::arg("dx"));
  bind_operation(module, "gated_forward", &gate_forward, py::kw_only(), py::arg("activation"),
                 py::arg("gate"), py::arg("up"), py::arg("row_stride") = 0, py::arg("y"));
  bind_operation(module, "gated_backward", &gate_backward, py::kw_only(), py::arg("activation"),
                 py::arg("dy"), py::arg("gate"), py::arg("up"), py::arg("dgate"), py::arg("dup"),
                 py::arg("row_stride") = 0, py::arg("drow_stride") = 0);
}

}  // namespace llmcore::bindings
