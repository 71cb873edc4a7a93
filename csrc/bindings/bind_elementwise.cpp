// Dropout, softmax, and the elementwise and row operations that layers are made of.
#include "bindings/py_tensor.h"
#include "ops/elementwise.h"

namespace llmcore::bindings {
namespace {

void bound_dropout(float p, uint64_t seed, uint64_t offset, const PyTensor& x,
                   const PyTensor* residual, const PyTensor& y) {
  py::gil_scoped_release release;
  dropout(op_context(x.view), {.dropout = {.p = p, .seed = seed},
                               .offset = offset,
                               .x = x.view,
                               .residual = view_of(residual),
                               .y = y.view});
}

void bound_add(const PyTensor& a, const PyTensor& b, const PyTensor& y) {
  py::gil_scoped_release release;
  add(op_context(a.view), {.a = a.view, .b = b.view, .y = y.view});
}

void bound_scale(float factor, const PyTensor& x, const PyTensor& y) {
  py::gil_scoped_release release;
  scale(op_context(x.view), {.factor = factor, .x = x.view, .y = y.view});
}

void bound_fill(float value, const PyTensor& y) {
  py::gil_scoped_release release;
  fill(op_context(y.view), {.value = value, .y = y.view});
}

void bound_cast(const PyTensor& x, const PyTensor& y) {
  py::gil_scoped_release release;
  cast(op_context(x.view), {.x = x.view, .y = y.view});
}

void bound_softmax(bool log, const PyTensor& x, const PyTensor& y) {
  py::gil_scoped_release release;
  softmax(op_context(x.view), {.log = log, .x = x.view, .y = y.view});
}

void bound_softmax_backward(bool log, const PyTensor& dy, const PyTensor& y, const PyTensor& dx) {
  py::gil_scoped_release release;
  softmax_backward(op_context(y.view), {.log = log, .dy = dy.view, .y = y.view, .dx = dx.view});
}

void bound_gather_rows(const PyTensor& x, const PyTensor& index, const PyTensor& y) {
  py::gil_scoped_release release;
  gather_rows(op_context(x.view), {.x = x.view, .index = index.view, .y = y.view});
}

void bound_scatter_rows(const PyTensor& x, const PyTensor& index, const PyTensor& y) {
  py::gil_scoped_release release;
  scatter_rows(op_context(x.view), {.x = x.view, .index = index.view, .y = y.view});
}

}  // namespace

void bind_elementwise(py::module_& module) {
  bind_operation(module, "dropout", &bound_dropout, py::kw_only(), py::arg("p"), py::arg("seed"),
                 py::arg("offset"), py::arg("x"), py::arg("residual") = py::none(), py::arg("y"));
  bind_operation(module, "add", &bound_add, py::kw_only(), py::arg("a"), py::arg("b"),
                 py::arg("y"));
  bind_operation(module, "scale", &bound_scale, py::kw_only(), py::arg("factor"), py::arg("x"),
                 py::arg("y"));
  bind_operation(module, "fill", &bound_fill, py::kw_only(), py::arg("value"), py::arg("y"));
  bind_operation(module, "cast", &bound_cast, py::kw_only(), py::arg("x"), py::arg("y"));
  bind_operation(module, "softmax_forward", &bound_softmax, py::kw_only(), py::arg("log"),
                 py::arg("x"), py::arg("y"));
  bind_operation(module, "softmax_backward", &bound_softmax_backward, py::kw_only(), py::arg("log"),
                 py::arg("dy"), py::arg("y"), py::arg("dx"));
  bind_operation(module, "gather_rows", &bound_gather_rows, py::kw_only(), py::arg("x"),
                 py::arg("index"), py::arg("y"));
  bind_operation(module, "scatter_rows", &bound_scatter_rows, py::kw_only(), py::arg("x"),
                 py::arg("index"), py::arg("y"));
}

}  // namespace llmcore::bindings
