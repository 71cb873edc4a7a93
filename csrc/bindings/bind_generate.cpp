// The core's side of Transformer.generate and llmcore.Engine.
#include <pybind11/stl.h>

#include "bindings/py_model.h"
#include "generate/beam_generation.h"
#include "generate/engine.h"

namespace llmcore::bindings {
namespace {

using EnginePtr = std::shared_ptr<Engine>;

std::vector<TokenIds> token_ids(const py::list& rows, const char* name) {
  std::vector<TokenIds> ids;
  for (const py::handle& row : rows) {
    const PyTensor tensor = int32_tensor(py::reinterpret_borrow<py::object>(row), name);
    const int32_t* first = tensor.view.as<int32_t>();
    ids.emplace_back(first, first + tensor.view.numel());
  }
  return ids;
}

// Of one prompt.
Request request_of(const py::object& prompt, const py::object& source,
                   const GenerationOptions& options, bool slide) {
  const auto ids = [](const py::object& row, const char* name) {
    const PyTensor tensor = int32_tensor(row, name);
    const int32_t* first = tensor.view.as<int32_t>();
    return TokenIds(first, first + tensor.view.numel());
  };
  return {.prompt = ids(prompt, "prompt"),
          .source = source.is_none() ? TokenIds{} : ids(source, "source"),
          .options = options,
          .slide = slide};
}

EnginePtr make_engine(const ModelPtr& model, int64_t places, int64_t tokens, int64_t prompt_tokens,
                      const ModelPtr& draft, const std::string& dtype) {
  const bool encoder = model->config().num_encoder_layers > 0;
  const DecodeRoom room{.sequences = places,
                        .tokens = tokens,
                        .sources = encoder ? places : 0,
                        .source_tokens = encoder ? tokens : 0,
                        .cache_dtype = cache_dtype_from_name(dtype)};
  return exclusively(
      *model, [&] { return std::make_shared<Engine>(*model, draft.get(), room, prompt_tokens); });
}

EnginePtr make_engine_for(const ModelPtr& model, const py::list& prompts, const py::list& sources,
                          const GenerationOptions& options, bool slide, const ModelPtr& draft) {
  const std::vector<TokenIds> begun = token_ids(prompts, "prompts");
  const std::vector<TokenIds> about = token_ids(sources, "sources");
  return exclusively(*model, [&] {
    return std::make_shared<Engine>(engine_for(*model, draft.get(), begun, about, options, slide));
  });
}

std::shared_ptr<BeamGeneration> make_beams(const ModelPtr& model, const py::list& prompts,
                                           const py::list& sources,
                                           const GenerationOptions& options) {
  const std::vector<TokenIds> begun = token_ids(prompts, "prompts");
  const std::vector<TokenIds> about = token_ids(sources, "sources");
  return exclusively(
      *model, [&] { return std::make_shared<BeamGeneration>(*model, begun, about, options); });
}

const char* finish_name(Finish finish) {
  return finish == Finish::kStop ? "stop" : finish == Finish::kLength ? "length" : "failed";
}

// (text, id, log_probability, finish or None, whether it was guessed, failure) of each token.
py::list step(Engine& engine, const ModelPtr& model, const ModelPtr& draft) {
  const std::vector<GeneratedToken> tokens =
      exclusively(*model, draft.get(), [&] { return engine.step(); });
  py::list list;
  for (const GeneratedToken& token : tokens)
    list.append(py::make_tuple(
        token.text, token.id, token.log_probability,
        token.finish == Finish::kNo ? py::object(py::none()) : py::str(finish_name(token.finish)),
        token.guessed, token.failure));
  return list;
}

}  // namespace

void bind_generate(py::module_& module) {
  py::class_<Request>(module, "Request", "A text to be continued; csrc/generate/engine.h.")
      .def(py::init(&request_of), py::arg("prompt"), py::arg("source").none(true),
           py::arg("options"), py::arg("slide"));
  py::class_<Engine, EnginePtr>(module, "Engine", "Continuous batching; csrc/generate/engine.h.")
      .def(py::init(&make_engine), py::arg("model"), py::arg("places"), py::arg("tokens"),
           py::arg("prompt_tokens"), py::arg("draft") = py::none(),
           py::arg("cache_dtype") = "float32", py::keep_alive<1, 2>(), py::keep_alive<1, 6>())
      .def(py::init(&make_engine_for), py::arg("model"), py::arg("prompts"), py::arg("sources"),
           py::arg("options"), py::arg("slide"), py::arg("draft") = py::none(),
           py::keep_alive<1, 2>(), py::keep_alive<1, 7>())
      .def("check", &Engine::check, py::arg("request"))
      .def("join", &Engine::join, py::arg("request"))
      .def("leave", &Engine::leave, py::arg("text"))
      .def("step", &step, py::arg("model"), py::arg("draft") = py::none())
      .def_property_readonly("has_room", &Engine::has_room)
      .def_property_readonly("done", &Engine::done)
      .def_property_readonly("read_tokens", &Engine::read_tokens)
      .def_property_readonly("copied_tokens", &Engine::copied_tokens)
      .def_property_readonly("guessed_tokens", &Engine::guessed_tokens)
      .def_property_readonly("accepted_tokens", &Engine::accepted_tokens)
      .def_property_readonly("passes_ahead", &Engine::passes_ahead);
  py::class_<BeamGeneration, std::shared_ptr<BeamGeneration>>(module, "BeamGeneration")
      .def(py::init(&make_beams), py::arg("model"), py::arg("prompts"), py::arg("sources"),
           py::arg("options"), py::keep_alive<1, 2>())
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
