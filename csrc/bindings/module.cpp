// Assembles the extension module llmcore._core.
#include "bindings/py_tensor.h"

PYBIND11_MODULE(_core, module) {
  using namespace llmcore::bindings;
  module.doc() = "The compiled core of llmcore. Use the llmcore package; names here may change.";
  module.attr("__version__") = LLMCORE_VERSION;
  bind_errors(module);
  bind_tensor(module);
  bind_machine(module);
  bind_model(module);
  bind_sampling(module);
  bind_beam(module);
  bind_generate(module);
  bind_matmul(module);
  bind_packed(module);
  bind_norm(module);
  bind_embedding(module);
  bind_rope(module);
  bind_optimizer(module);
  bind_attention(module);
  bind_activation(module);
  bind_elementwise(module);
  bind_cross_entropy(module);
  bind_loading(module);
}
