// AdamW and gradient clipping for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/optimizer.h"

namespace llmcore::bindings {
namespace {

// Every tensor as the flat buffer the optimizer works on.
Tensor flat(const PyTensor& tensor) {
  return reshaped(tensor.view, tensor.view.numel());
}

void step(const PyTensor& param, const PyTensor& grad, const PyTensor& m, const PyTensor& v,
          double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step,
          float grad_scale) {
  const AdamWSettings settings{
      .lr = lr, .beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = weight_decay};
  check_adamw(settings, step);
  py::gil_scoped_release release;
  adamw(op_context(param.view), {.factors = adamw_factors(settings, step, grad_scale),
                                 .param = flat(param),
                                 .m = flat(m),
                                 .v = flat(v),
                                 .grad = flat(grad)});
}

double sum_of_squares(const PyTensor& x) {
  py::gil_scoped_release release;
  return square_sum(op_context(x.view), flat(x));
}

}  // namespace

void bind_optimizer(py::module_& module) {
  bind_operation(module, "adamw", &step, py::kw_only(), py::arg("param"), py::arg("grad"),
                 py::arg("m"), py::arg("v"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
                 py::arg("eps"), py::arg("weight_decay"), py::arg("step"),
                 py::arg("grad_scale") = 1.0f);
  bind_operation(module, "square_sum", &sum_of_squares, py::arg("x"));
}

}  // namespace llmcore::bindings
