// Norms for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/norm.h"

namespace llmcore::bindings {
namespace {

NormKind kind_of(bool rms) {
  return rms ? NormKind::kRms : NormKind::kLayer;
}

void forward(bool rms, float eps, const PyTensor& x, const PyTensor* weight, const PyTensor* bias,
             const PyTensor& y, const PyTensor* mean, const PyTensor* rstd) {
  py::gil_scoped_release release;
  norm_forward(op_context(x.view), {.kind = kind_of(rms),
                                    .eps = eps,
                                    .x = x.view,
                                    .weight = view_of(weight),
                                    .bias = view_of(bias),
                                    .y = y.view,
                                    .mean = view_of(mean),
                                    .rstd = view_of(rstd)});
}

void backward(bool rms, const PyTensor& dy, const PyTensor& x, const PyTensor* weight,
              const PyTensor* mean, const PyTensor& rstd, const PyTensor& dx,
              const PyTensor* dweight, const PyTensor* dbias, bool accumulate) {
  py::gil_scoped_release release;
  norm_backward(op_context(x.view), {.kind = kind_of(rms),
                                     .accumulate = accumulate,
                                     .dy = dy.view,
                                     .x = x.view,
                                     .weight = view_of(weight),
                                     .mean = view_of(mean),
                                     .rstd = rstd.view,
                                     .dx = dx.view,
                                     .dweight = view_of(dweight),
                                     .dbias = view_of(dbias)});
}

}  // namespace

void bind_norm(py::module_& module) {
  bind_operation(module, "norm_forward", &forward, py::kw_only(), py::arg("rms"), py::arg("eps"),
                 py::arg("x"), py::arg("weight") = py::none(), py::arg("bias") = py::none(),
                 py::arg("y"), py::arg("mean") = py::none(), py::arg("rstd") = py::none());
  bind_operation(module, "norm_backward", &backward, py::kw_only(), py::arg("rms"), py::arg("dy"),
                 py::arg("x"), py::arg("weight") = py::none(), py::arg("mean") = py::none(),
                 py::arg("rstd"), py::arg("dx"), py::arg("dweight") = py::none(),
                 py::arg("dbias") = py::none(), py::arg("accumulate") = false);
}

}  // namespace llmcore::bindings
