// Losses for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/cross_entropy.h"

namespace llmcore::bindings {
namespace {

void bound_cross_entropy(const PyTensor& logits, const PyTensor& targets, float label_smoothing,
                         const PyTensor* class_weight, const PyTensor& losses,
                         const PyTensor* row_scale, const PyTensor* dlogits) {
  py::gil_scoped_release release;
  cross_entropy(op_context(logits.view), {.logits = logits.view,
                                          .targets = targets.view,
                                          .label_smoothing = label_smoothing,
                                          .class_weight = view_of(class_weight),
                                          .losses = losses.view,
                                          .row_scale = view_of(row_scale),
                                          .dlogits = view_of(dlogits)});
}

void bound_linear_cross_entropy(const PyTensor& hidden, const PyTensor& weight,
                                const PyTensor* bias, const PyTensor& targets,
                                float label_smoothing, float logit_scale, const PyTensor& losses,
                                const PyTensor* row_scale, const PyTensor* dhidden,
                                const PyTensor* dweight, const PyTensor* dbias) {
  py::gil_scoped_release release;
  linear_cross_entropy(op_context(hidden.view), {.hidden = hidden.view,
                                                 .weight = weight.view,
                                                 .bias = view_of(bias),
                                                 .targets = targets.view,
                                                 .label_smoothing = label_smoothing,
                                                 .logit_scale = logit_scale,
                                                 .losses = losses.view,
                                                 .row_scale = view_of(row_scale),
                                                 .dhidden = view_of(dhidden),
                                                 .dweight = view_of(dweight),
                                                 .dbias = view_of(dbias)});
}

}  // namespace

void bind_cross_entropy(py::module_& module) {
  bind_operation(module, "cross_entropy", &bound_cross_entropy, py::kw_only(), py::arg("logits"),
                 py::arg("targets"), py::arg("label_smoothing"),
                 py::arg("class_weight") = py::none(), py::arg("losses"),
                 py::arg("row_scale") = py::none(), py::arg("dlogits") = py::none());
  bind_operation(module, "linear_cross_entropy", &bound_linear_cross_entropy, py::kw_only(),
                 py::arg("hidden"), py::arg("weight"), py::arg("bias") = py::none(),
                 py::arg("targets"), py::arg("label_smoothing"), py::arg("logit_scale") = 1.0f,
                 py::arg("losses"), py::arg("row_scale") = py::none(),
                 py::arg("dhidden") = py::none(), py::arg("dweight") = py::none(),
                 py::arg("dbias") = py::none());
}

}  // namespace llmcore::bindings
