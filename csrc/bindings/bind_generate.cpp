// Generation: the core's side of Transformer.generate.
#include <pybind11/stl.h>

#include "bindings/py_model.h"
#include "generate/beam_generation.h"
#include "generate/generation.h"

namespace llmcore::bindings {
namespace {

using GenerationPtr = std::shared_ptr<Generation>;

std::vector<TokenIds> token_ids(const py::list& rows, const char* name) {
  std::vector<TokenIds> ids;
  for (const py::handle& row : rows) {
    const PyTensor tensor = int32_tensor(py::reinterpret_borrow<py::object>(row), name);
    const int32_t* first = tensor.view.as<int32_t>();
    ids.emplace_back(first, first + tensor.view.numel());
  }
  return ids;
}

// A Generation or BeamGeneration; `more` is what its constructor wants besides.
template <class Kind, class... More>
std::shared_ptr<Kind> make(const ModelPtr& model, const py::list& prompts, const py::list& sources,
                           const GenerationOptions& options, More... more) {
  const std::vector<TokenIds> begun = token_ids(prompts, "prompts");
  const std::vector<TokenIds> about = token_ids(sources, "sources");
  return exclusively(*model, [&] {
    return std::make_shared<Kind>(*model, begun, about, options, more...);
  });
}

const char* finish_name(Finish finish) {
  return finish == Finish::kStop ? "stop" : "length";
}

py::list step(Generation& generation, const ModelPtr& model) {
  const std::vector<GeneratedToken> tokens = exclusively(*model, [&] { return generation.step(); });
  py::list list;
  for (const GeneratedToken& token : tokens)
    list.append(py::make_tuple(
        token.index, token.id, token.log_probability,
        token.finish == Finish::kNo ? py::object(py::none()) : py::str(finish_name(token.finish))));
  return list;
}

}  // namespace

void bind_generate(py::module_& module) {
  py::class_<Generation, GenerationPtr>(module, "Generation")
      .def(py::init(&make<Generation, bool>), py::arg("model"), py::arg("prompts"), py::arg("sources"),
           py::arg("options"), py::arg("slide"), py::keep_alive<1, 2>())
      .def_property_readonly("done", &Generation::done)
      .def("step", &step, py::arg("model"))
      .def("finish", &Generation::finish, py::arg("index"));
  py::class_<BeamGeneration, std::shared_ptr<BeamGeneration>>(module, "BeamGeneration")
      .def(py::init(&make<BeamGeneration>), py::arg("model"), py::arg("prompts"),
           py::arg("sources"), py::arg("options"), py::keep_alive<1, 2>())
      .def_property_readonly("done", &BeamGeneration::done)
      .def(
          "step",
          [](BeamGeneration& generation, const ModelPtr& model) {
            exclusively(*model, [&] { generation.step(); });
          },
          py::arg("model"))
      .def("best", &BeamGeneration::best, py::arg("prompt"));
}

}  // namespace llmcore::bindings
