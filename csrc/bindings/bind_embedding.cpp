// Embedding lookup for llmcore.ops.
#include "bindings/py_tensor.h"
#include "ops/embedding.h"

namespace llmcore::bindings {
namespace {

void forward(const PyTensor& ids, const PyTensor& table, const PyTensor* positions,
             const PyTensor* position_ids, const PyTensor* types, const PyTensor* type_ids,
             float scale, float dropout, uint64_t seed, uint64_t stream, const PyTensor& out) {
  py::gil_scoped_release release;
  embedding_forward(op_context(table.view),
                    {.ids = ids.view,
                     .table = table.view,
                     .scale = scale,
                     .positions = view_of(positions),
                     .position_ids = view_of(position_ids),
                     .types = view_of(types),
                     .type_ids = view_of(type_ids),
                     .dropout = {.p = dropout, .seed = seed, .stream = stream},
                     .out = out.view});
}

void backward(const PyTensor& dout, const PyTensor* ids, const PyTensor* dtable,
              const PyTensor* position_ids, const PyTensor* dpositions, const PyTensor* type_ids,
              const PyTensor* dtypes, float scale, float dropout, uint64_t seed, uint64_t stream) {
  py::gil_scoped_release release;
  embedding_backward(op_context(dout.view),
                     {.ids = view_of(ids),
                      .scale = scale,
                      .position_ids = view_of(position_ids),
                      .type_ids = view_of(type_ids),
                      .dropout = {.p = dropout, .seed = seed, .stream = stream},
                      .dout = dout.view,
                      .dtable = view_of(dtable),
                      .dpositions = view_of(dpositions),
                      .dtypes = view_of(dtypes)});
}

}  // namespace

void bind_embedding(py::module_& module) {
  bind_operation(
      module, "embedding_forward", &forward, py::kw_only(), py::arg("ids"), py::arg("table"),
      py::arg("positions") = py::none(), py::arg("position_ids") = py::none(),
      py::arg("types") = py::none(), py::arg("type_ids") = py::none(), py::arg("scale") = 1.0f,
      py::arg("dropout") = 0.0f, py::arg("seed") = 0, py::arg("stream") = 0, py::arg("out"));
  bind_operation(module, "embedding_backward", &backward, py::kw_only(), py::arg("dout"),
                 py::arg("ids") = py::none(), py::arg("dtable") = py::none(),
                 py::arg("position_ids") = py::none(), py::arg("dpositions") = py::none(),
                 py::arg("type_ids") = py::none(), py::arg("dtypes") = py::none(),
                 py::arg("scale") = 1.0f, py::arg("dropout") = 0.0f, py::arg("seed") = 0,
                 py::arg("stream") = 0);
}

}  // namespace llmcore::bindings
