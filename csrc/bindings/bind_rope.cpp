// Rotary position embedding for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/rope.h"

namespace llmcore::bindings {
namespace {

// x and y are [B, H, T, D].
void rotate(const PyTensor& x, const PyTensor& cos, const PyTensor& sin, const PyTensor& positions,
            bool interleaved, bool inverse, const PyTensor& y) {
  py::gil_scoped_release release;
  const int64_t heads = x.view.dim(1), rows = x.view.dim(2), width = x.view.dim(3);
  const auto heads_of = [&](const PyTensor& tensor) {
    return HeadView{.data = tensor.view.data,
                    .batch_stride = heads * rows * width,
                    .row_stride = width,
                    .head_stride = rows * width};
  };
  rope(op_context(x.view), {.batch = x.view.dim(0),
                            .rows = rows,
                            .heads = heads,
                            .head_dim = width,
                            .dtype = x.view.dtype,
                            .x = heads_of(x),
                            .y = heads_of(y),
                            .rotary_dim = cos.view.dim(-1) * 2,
                            .interleaved = interleaved,
                            .inverse = inverse,
                            .cos = cos.view,
                            .sin = sin.view,
                            .positions = positions.view});
}

}  // namespace

void bind_rope(py::module_& module) {
  bind_operation(module, "rope", &rotate, py::kw_only(), py::arg("x"), py::arg("cos"),
                 py::arg("sin"), py::arg("positions"), py::arg("interleaved"), py::arg("inverse"),
                 py::arg("y"));
}

}  // namespace llmcore::bindings
