// The options of generation, and choosing tokens from logits.
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/py_tensor.h"
#include "core/error.h"
#include "core/queue.h"
#include "generate/sample.h"
#include "ops/sampling.h"

namespace llmcore::bindings {
namespace {

using Ids = std::vector<int32_t>;

History history_of(const Ids& ids, int64_t prompt_length) {
  const auto length = static_cast<int64_t>(ids.size());
  CHECK(prompt_length >= 0 && prompt_length <= length, ShapeError,
        "generate: prompt_length must be from 0 to ", length, ", got ", prompt_length);
  return {.ids = ids.data(), .length = length, .prompt_length = prompt_length};
}

void process(const GenerationOptions& options, const Ids& ids, int64_t prompt_length,
             const PyTensor& logits) {
  check_same_device("process_logits", {}, logits.view.device);
  const int64_t vocab_size = logits.view.numel();
  check_tensor("generate", "logits", logits.view, "[V]", {vocab_size});
  check_options(options, vocab_size);
  std::vector<int32_t> counts(vocab_size, 0);
  process_logits(options, history_of(ids, prompt_length), logits.view.f32(), vocab_size,
                 counts.data());
}

// (ids, log_probabilities) of one choice per row of logits.
py::tuple choose(const GenerationOptions& options, const PyTensor& logits,
                 const std::vector<Ids>& ids, const std::vector<int64_t>& prompt_lengths,
                 const std::vector<uint64_t>& sequences) {
  const auto batch = static_cast<size_t>(logits.view.rows());
  CHECK(ids.size() == batch && prompt_lengths.size() == batch && sequences.size() == batch,
        ShapeError, "generate: ids, prompt_lengths and sequences must have B = ", batch,
        " entries each, got ", ids.size(), ", ", prompt_lengths.size(), " and ", sequences.size());
  std::vector<ChooseRow> rows;
  for (size_t b = 0; b < batch; ++b)
    rows.push_back({.options = &options,
                    .history = history_of(ids[b], prompt_lengths[b]),
                    .sequence = sequences[b]});
  check_options(options, logits.view.cols());
  std::vector<Choice> choices(batch);
  {
    py::gil_scoped_release release;
    choose_tokens(op_context(logits.view), logits.view, rows.data(), choices.data());
  }
  std::vector<int32_t> chosen;
  std::vector<float> log_probabilities;
  for (size_t b = 0; b < batch; ++b) {
    CHECK(choices[b].failure == ChoiceFailure::kNone, ConfigError,
          failure_message(choices[b].failure, static_cast<int64_t>(b)));
    chosen.push_back(choices[b].id);
    log_probabilities.push_back(choices[b].log_probability);
  }
  return py::make_tuple(chosen, log_probabilities);
}

// (ids, log_probabilities, failures) of what an operation leaves on the device.
py::tuple lists_of(const Context& context, const Tensor& choices) {
  Buffer storage;
  const auto* choice = on_cpu(context.queue, choices, storage).as<Choice>();
  std::vector<int32_t> ids, failures;
  std::vector<float> log_probabilities;
  for (int64_t i = 0; i < choices.rows(); ++i) {
    ids.push_back(choice[i].id);
    log_probabilities.push_back(choice[i].log_probability);
    failures.push_back(static_cast<int32_t>(choice[i].failure));
  }
  return py::make_tuple(ids, log_probabilities, failures);
}

// Row after row, `count` of each.
py::tuple bound_best_tokens(const PyTensor& logits, int64_t count) {
  const Context context = op_context(logits.view);
  const ScratchScope scope(*context.arena);
  const Tensor best =
      context.arena->scratch(DType::kInt8, logits.view.rows(), count, sizeof(Choice));
  best_tokens(context, {.logits = logits.view, .choices = best});
  return lists_of(context, best);
}

// (row, temperature, top_k, top_p, min_p, uniform)
using Settings = std::tuple<int32_t, float, int32_t, double, double, double>;

py::tuple bound_sample_tokens(const PyTensor& logits, const std::vector<Settings>& settings) {
  const Context context = op_context(logits.view);
  const KeepScope inputs(*context.arena);
  const ScratchScope scope(*context.arena);
  const auto count = static_cast<int64_t>(settings.size());
  const Tensor told = context.arena->input(DType::kInt8, count, sizeof(SampleSettings));
  for (int64_t i = 0; i < count; ++i) {
    const auto& [row, temperature, top_k, top_p, min_p, uniform] = settings[i];
    told.host<SampleSettings>()[i] = {
        top_p, min_p, uniform, temperature, top_k, row, static_cast<int32_t>(i)};
  }
  context.upload();
  const Tensor chosen = context.arena->scratch(DType::kInt8, count, sizeof(Choice));
  sample_tokens(context, {.logits = logits.view, .settings = told, .choices = chosen});
  return lists_of(context, chosen);
}

// The three choices as Python spells them: False, True and "never".
py::object get_early_stopping(const GenerationOptions& options) {
  if (options.early_stopping == EarlyStopping::kNever) return py::str("never");
  return py::bool_(options.early_stopping == EarlyStopping::kYes);
}

void set_early_stopping(GenerationOptions& options, const py::object& value) {
  const bool is_bool = py::isinstance<py::bool_>(value);
  CHECK(is_bool || value.equal(py::str("never")), ConfigError,
        "generate: early_stopping must be False, True or 'never', got ",
        py::repr(value).cast<std::string>());
  options.early_stopping = !is_bool             ? EarlyStopping::kNever
                           : value.cast<bool>() ? EarlyStopping::kYes
                                                : EarlyStopping::kNo;
}

// None, "ngram" and "draft".
py::object get_speculate(const GenerationOptions& options) {
  if (options.speculate == Speculate::kNo) return py::none();
  return py::str(options.speculate == Speculate::kNgram ? "ngram" : "draft");
}

void set_speculate(GenerationOptions& options, const std::optional<std::string>& value) {
  CHECK(!value || *value == "ngram" || *value == "draft", ConfigError,
        "generate: speculate must be None, 'ngram' or 'draft', got '", *value, "'");
  options.speculate = !value              ? Speculate::kNo
                      : *value == "ngram" ? Speculate::kNgram
                                          : Speculate::kDraft;
}

std::string get_cache_dtype(const GenerationOptions& options) {
  return dtype_name(options.cache_dtype);
}

void set_cache_dtype(GenerationOptions& options, const std::string& name) {
  options.cache_dtype = cache_dtype_from_name(name);
}

}  // namespace

void bind_sampling(py::module_& module) {
  py::class_<GenerationOptions>(
      module, "GenerationOptions",
      "How tokens are chosen; csrc/generate/options.h says what each field is.")
      .def(py::init<>())
      .def_readwrite("max_new_tokens", &GenerationOptions::max_new_tokens)
      .def_readwrite("min_new_tokens", &GenerationOptions::min_new_tokens)
      .def_readwrite("stop_ids", &GenerationOptions::stop_ids)
      .def_readwrite("do_sample", &GenerationOptions::do_sample)
      .def_readwrite("temperature", &GenerationOptions::temperature)
      .def_readwrite("top_k", &GenerationOptions::top_k)
      .def_readwrite("top_p", &GenerationOptions::top_p)
      .def_readwrite("min_p", &GenerationOptions::min_p)
      .def_readwrite("repetition_penalty", &GenerationOptions::repetition_penalty)
      .def_readwrite("presence_penalty", &GenerationOptions::presence_penalty)
      .def_readwrite("frequency_penalty", &GenerationOptions::frequency_penalty)
      .def_readwrite("no_repeat_ngram_size", &GenerationOptions::no_repeat_ngram_size)
      .def_readwrite("banned_ids", &GenerationOptions::banned_ids)
      .def_readwrite("forced_ids", &GenerationOptions::forced_ids)
      .def_readwrite("forced_eos_id", &GenerationOptions::forced_eos_id)
      .def_readwrite("num_beams", &GenerationOptions::num_beams)
      .def_readwrite("num_beam_groups", &GenerationOptions::num_beam_groups)
      .def_readwrite("diversity_penalty", &GenerationOptions::diversity_penalty)
      .def_readwrite("length_penalty", &GenerationOptions::length_penalty)
      .def_property("early_stopping", &get_early_stopping, &set_early_stopping)
      .def_readwrite("num_return_sequences", &GenerationOptions::num_return_sequences)
      .def_property("speculate", &get_speculate, &set_speculate)
      .def_readwrite("num_draft_tokens", &GenerationOptions::num_draft_tokens)
      .def_readwrite("draft_ngram", &GenerationOptions::draft_ngram)
      .def_property("cache_dtype", &get_cache_dtype, &set_cache_dtype)
      .def_readwrite("seed", &GenerationOptions::seed);
  module.def("process_logits", &process, py::kw_only(), py::arg("options"), py::arg("ids"),
             py::arg("prompt_length"), py::arg("logits"));
  module.def("choose_tokens", &choose, py::kw_only(), py::arg("options"), py::arg("logits"),
             py::arg("ids"), py::arg("prompt_lengths"), py::arg("sequences"));
  module.def("best_tokens", &bound_best_tokens, py::kw_only(), py::arg("logits"), py::arg("count"));
  module.def("sample_tokens", &bound_sample_tokens, py::kw_only(), py::arg("logits"),
             py::arg("settings"));
}

}  // namespace llmcore::bindings
