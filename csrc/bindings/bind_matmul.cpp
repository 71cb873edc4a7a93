// Matrix products for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/backend.h"
#include "ops/matmul.h"

namespace llmcore::bindings {
namespace {

void product(const PyTensor& a, const PyTensor& b, const PyTensor& c, bool transpose_a,
             bool transpose_b, bool accumulate, const PyTensor* bias,
             const PyTensor* pre_activation, const std::string& activation,
             const PyTensor* gate_input, const std::string& gate_activation,
             const PyTensor* gate_output, float dropout_p, uint64_t dropout_seed,
             uint64_t dropout_stream, const PyTensor* residual, bool bfloat16,
             const PyTensor* norm_weight, const PyTensor* norm_bias, float norm_eps, bool rms) {
  const MatmulArgs args{.a = a.view,
                        .b = b.view,
                        .c = c.view,
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .accumulate = accumulate,
                        .norm = row_norm(norm_weight, norm_bias, norm_eps, rms),
                        .bias = view_of(bias),
                        .pre_activation = view_of(pre_activation),
                        .activation = activation_from_name(activation.c_str()),
                        .gate_input = view_of(gate_input),
                        .gate_activation = activation_from_name(gate_activation.c_str()),
                        .gate_output = view_of(gate_output),
                        .dropout = {dropout_p, dropout_seed, dropout_stream},
                        .residual = view_of(residual)};
  Context context = op_context(c.view);
  context.bfloat16 = bfloat16;
  py::gil_scoped_release release;
  matmul(context, args);
}

void batched(const PyTensor& a, const PyTensor& b, const PyTensor& c, bool transpose_a,
             bool transpose_b, bool accumulate) {
  py::gil_scoped_release release;
  batched_matmul(op_context(c.view), {.a = a.view,
                                      .b = b.view,
                                      .c = c.view,
                                      .transpose_a = transpose_a,
                                      .transpose_b = transpose_b,
                                      .accumulate = accumulate});
}

void sum_of_columns(const PyTensor& x, const PyTensor& out) {
  py::gil_scoped_release release;
  column_sum(op_context(x.view), {.x = x.view, .out = out.view});
}

}  // namespace

void bind_matmul(py::module_& module) {
  bind_operation(module, "matmul", &product, py::kw_only(), py::arg("a"), py::arg("b"),
                 py::arg("c"), py::arg("transpose_a") = false, py::arg("transpose_b") = false,
                 py::arg("accumulate") = false, py::arg("bias") = py::none(),
                 py::arg("pre_activation") = py::none(), py::arg("activation") = "none",
                 py::arg("gate_input") = py::none(), py::arg("gate_activation") = "none",
                 py::arg("gate_output") = py::none(), py::arg("dropout_p") = 0.0f,
                 py::arg("dropout_seed") = 0, py::arg("dropout_stream") = 0,
                 py::arg("residual") = py::none(), py::arg("bfloat16") = false,
                 py::arg("norm_weight") = py::none(), py::arg("norm_bias") = py::none(),
                 py::arg("norm_eps") = 1e-5f, py::arg("rms") = false);
  bind_operation(module, "batched_matmul", &batched, py::kw_only(), py::arg("a"), py::arg("b"),
                 py::arg("c"), py::arg("transpose_a") = false, py::arg("transpose_b") = false,
                 py::arg("accumulate") = false);
  bind_operation(module, "column_sum", &sum_of_columns, py::kw_only(), py::arg("x"),
                 py::arg("out"));
}

}  // namespace llmcore::bindings
