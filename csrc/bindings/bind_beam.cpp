// Beam search over logits from anywhere.
#include <pybind11/stl.h>

#include "bindings/py_tensor.h"
#include "generate/beam.h"

namespace llmcore::bindings {
namespace {

void advance(const std::vector<BeamSearch*>& searches, const PyTensor& logits) {
  const py::gil_scoped_release release;
  advance_beams(op_context(logits.view), logits.view, searches);
}

const char* finish_reason(const BeamHypothesis& hypothesis) {
  return hypothesis.stopped ? "stop" : "length";
}

}  // namespace

void bind_beam(py::module_& module) {
  py::class_<BeamHypothesis>(module, "BeamHypothesis",
                             "A finished sequence; csrc/generate/beam.h says what each field is.")
      .def_readonly("ids", &BeamHypothesis::ids)
      .def_readonly("log_probabilities", &BeamHypothesis::log_probabilities)
      .def_readonly("total", &BeamHypothesis::total)
      .def_readonly("score", &BeamHypothesis::score)
      .def_property_readonly("finish_reason", &finish_reason);
  py::class_<BeamSearch>(module, "BeamSearch",
                         "The search for one prompt; advance_beams() does a step of several.")
      .def(py::init<const GenerationOptions&, const std::vector<int32_t>&, int64_t, int64_t>(),
           py::kw_only(), py::arg("options"), py::arg("prompt"), py::arg("vocab_size"),
           py::arg("most_new_tokens"))
      .def_property_readonly("beams", &BeamSearch::beams)
      .def_property_readonly("done", &BeamSearch::done)
      .def_property_readonly("parents", &BeamSearch::parents)
      .def_property_readonly("tokens", &BeamSearch::tokens)
      .def("best", &BeamSearch::best);
  module.def("advance_beams", &advance, py::kw_only(), py::arg("searches"), py::arg("logits"));
}

}  // namespace llmcore::bindings
