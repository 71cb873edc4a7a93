// Transformer and TrainStep.
#include <pybind11/stl.h>

#include "bindings/exchange.h"
#include "bindings/py_model.h"
#include "core/error.h"
#include "nn/train_step.h"
#include "ops/backend.h"

namespace llmcore::bindings {
namespace {

using TrainStepPtr = std::shared_ptr<TrainStep>;

ModelPtr make_model(const py::dict& values, const std::string& device,
                    const std::optional<uint64_t>& seed, bool planned) {
  const Config config = config_from_dict(values);
  const Backing backing = planned ? Backing::kAddresses : Backing::kMemory;
  const Device where = device_from_name(device, backing);
  py::gil_scoped_release release;
  auto model = std::make_shared<Transformer>(config, where, backing);
  if (seed) model->params().initialise(*seed);
  return model;
}

// One named view for each parameter; they keep the model alive.
py::dict named_views(const ModelPtr& model, const Tensor& flat) {
  py::dict views;
  for (const ParamInfo& info : model->params().table()) {
    if (info.offset < 0) continue;  // packed
    PyTensor tensor{flat, model};
    tensor.view.data = flat.f32() + info.offset;
    tensor.view.rank = static_cast<int32_t>(info.shape.size());
    std::copy(info.shape.begin(), info.shape.end(), tensor.view.shape);
    views[py::str(info.name)] = tensor;
  }
  return views;
}

// Attention probes from (layer, head, first query), whose weights go to out: [probes, B, queries,
// S].
std::vector<AttentionProbe> make_probes(const py::list& tuples, const Tensor& out) {
  std::vector<AttentionProbe> probes;
  for (const py::handle& item : tuples) {
    const auto [layer, head, first] = item.cast<std::tuple<int64_t, int64_t, int64_t>>();
    const auto i = static_cast<int64_t>(probes.size());
    probes.push_back({.layer = layer,
                      .head = head,
                      .first_query = first,
                      .queries = out.dim(2),
                      .weights = row_slice(out, i, 1).f32()});
  }
  return probes;
}

void attention_weights(const ModelPtr& model, const py::object& batch, const std::string& kind,
                       const py::list& wanted, const PyTensor& out) {
  check_same_device("attention_weights", model->device(), out.view.device);
  check_tensor(
      "attention_weights", "out", out.view, "[probes, B, queries, S]",
      {static_cast<int64_t>(wanted.size()), out.view.dim(1), out.view.dim(2), out.view.dim(3)});
  const PyBatch owner(batch);
  AttentionProbes probes;
  (kind == "encoder" ? probes.encoder
   : kind == "cross" ? probes.cross
                     : probes.decoder) = make_probes(wanted, out.view);
  exclusively(*model, [&] { model->attention_weights(owner.view, probes); });
}

// A method of the model that turns a batch into a tensor.
auto into_tensor(void (Transformer::*method)(const Batch&, const Tensor&)) {
  return [method](const ModelPtr& model, const py::object& batch, const PyTensor& out) {
    check_same_device("model", model->device(), out.view.device);
    const PyBatch owner(batch);
    exclusively(*model, [&] { ((*model).*method)(owner.view, out.view); });
  };
}

py::tuple loss_tuple(const LossSum& loss) {
  return py::make_tuple(loss.sum, loss.weight);
}

std::shared_ptr<StepReport> step(TrainStep& train_step, const ModelPtr& model,
                                 const py::list& micro_batches, double lr,
                                 std::pair<double, double> betas, double eps, double weight_decay,
                                 double max_grad_norm, double max_loss, double max_norm) {
  std::vector<PyBatch> owners;
  std::vector<Batch> batches;
  for (const py::handle& batch : micro_batches)
    owners.emplace_back(py::reinterpret_borrow<py::object>(batch));
  for (const PyBatch& owner : owners) batches.push_back(owner.view);
  const StepSettings settings{.adamw = {.lr = lr,
                                        .beta1 = betas.first,
                                        .beta2 = betas.second,
                                        .eps = eps,
                                        .weight_decay = weight_decay},
                              .max_grad_norm = max_grad_norm,
                              .max_loss = max_loss,
                              .max_norm = max_norm};
  return exclusively(*model, [&] { return train_step.step(batches, settings); });
}

py::tuple read_report(StepReport& report) {
  StepResult result;
  {
    py::gil_scoped_release release;
    result = report.get();
  }
  return py::make_tuple(result.loss, result.grad_norm, result.targets, result.skipped);
}

}  // namespace

PyTensor int32_tensor(const py::object& source, const char* name) {
  if (source.is_none()) return {};
  PyTensor tensor = moved_to(as_tensor(source), {});
  CHECK(tensor.view.dtype == DType::kInt32, DTypeError, "model: ", name, " must be int32, got ",
        dtype_name(tensor.view.dtype));
  return tensor;
}

PyBatch::PyBatch(const py::object& batch) {
  const auto take = [&](const char* name) {
    tensors.push_back(int32_tensor(batch.attr(name), name));
    return tensors.back().view;
  };
  view.enc_ids = take("enc_ids");
  view.enc_lengths = take("enc_lengths");
  view.dec_ids = take("dec_ids");
  view.dec_lengths = take("dec_lengths");
  view.prefix_lengths = take("prefix_lengths");
  view.types = take("types");
  view.rows = take("rows");
  view.targets = take("targets");
  tensors.push_back(moved_to(as_tensor(batch.attr("weights")), {}));
  view.weights = tensors.back().view;
  view.label_smoothing = batch.attr("label_smoothing").cast<float>();
  view.labels = batch.attr("head").cast<std::string>() == "labels";
}

void bind_model(py::module_& module) {
  py::class_<Transformer, ModelPtr>(module, "Transformer")
      .def(py::init(&make_model), py::arg("config"), py::arg("device"), py::arg("seed"),
           py::arg("planned") = false)
      .def_property_readonly("device",
                             [](const ModelPtr& model) { return device_name(model->device()); })
      .def("parameters",
           [](const ModelPtr& model) { return named_views(model, model->params().weights()); })
      .def("gradients",
           [](const ModelPtr& model) { return named_views(model, model->params().gradients()); })
      .def("trainable",
           [](const ModelPtr& model) {
             py::dict trainable;
             for (const ParamInfo& info : model->params().table())
               trainable[py::str(info.name)] = info.trainable;
             return trainable;
           })
      .def(
          "set_trainable",
          [](const ModelPtr& model, const std::string& name, bool trainable) {
            exclusively(*model, [&] { model->params().set_trainable(name, trainable); });
          },
          py::arg("name"), py::arg("trainable"))
      .def("flat_parameters",
           [](const ModelPtr& model) {
             return PyTensor{model->params().weights(), model};
           })
      .def("logits", into_tensor(&Transformer::logits), py::arg("batch"), py::arg("out"))
      .def("encode", into_tensor(&Transformer::encode), py::arg("batch"), py::arg("out"))
      .def("label_logits", into_tensor(&Transformer::label_logits), py::arg("batch"),
           py::arg("out"))
      .def("pooled", into_tensor(&Transformer::pooled), py::arg("batch"), py::arg("out"))
      .def("attention_weights", &attention_weights, py::arg("batch"), py::arg("kind"),
           py::arg("probes"), py::arg("out"))
      .def("loss",
           [](const ModelPtr& model, const py::object& batch) {
             const PyBatch owner(batch);
             return loss_tuple(exclusively(*model, [&] { return model->loss(owner.view); }));
           })
      .def("row_losses", into_tensor(&Transformer::row_losses), py::arg("batch"), py::arg("out"))
      .def("loss_and_gradients",
           [](const ModelPtr& model, const py::object& batch) {
             const PyBatch owner(batch);
             return loss_tuple(
                 exclusively(*model, [&] { return loss_and_gradients(*model, owner.view); }));
           })
      .def(
          "take_weights",
          [](const ModelPtr& model, const ModelPtr& other) {
            exclusively(*model, other.get(), [&] { model->take_weights(*other); });
          },
          py::arg("other"))
      .def_property(
          "recompute", [](const ModelPtr& model) { return model->recompute; },
          [](const ModelPtr& model, bool value) { model->recompute = value; })
      .def("activation_bytes",
           [](const ModelPtr& model) {
             return model->arena().peak_bytes() + model->arena().input_bytes();
           })
      .def_property_readonly("weight_bytes",
                             [](const ModelPtr& model) { return model->params().weight_bytes(); })
      .def(
          "planned_bytes",
          [](const ModelPtr& model, const py::object& batch, size_t micro_batches, bool bfloat16) {
            const PyBatch owner(batch);
            const std::vector<Batch> batches(micro_batches, owner.view);
            return exclusively(*model, [&] { return planned_bytes(*model, batches, bfloat16); });
          },
          py::arg("batch"), py::kw_only(), py::arg("micro_batches"), py::arg("bfloat16"))
      .def("trim",
           [](const ModelPtr& model) { exclusively(*model, [&] { model->arena().trim(); }); });

  py::class_<StepReport, std::shared_ptr<StepReport>>(module, "StepReport")
      .def("get", &read_report);
  py::class_<TrainStep, TrainStepPtr>(module, "TrainStep")
      .def(py::init([](const ModelPtr& model, uint64_t dropout_seed, bool bfloat16) {
             return std::make_shared<TrainStep>(*model, dropout_seed, bfloat16);
           }),
           py::arg("model"), py::arg("dropout_seed"), py::arg("bfloat16") = false,
           py::keep_alive<1, 2>())
      .def("step", &step, py::arg("model"), py::arg("micro_batches"), py::kw_only(), py::arg("lr"),
           py::arg("betas"), py::arg("eps"), py::arg("weight_decay"), py::arg("max_grad_norm"),
           py::arg("max_loss"), py::arg("max_norm"))
      .def_property_readonly("m",
                             [](const TrainStepPtr& self) {
                               return PyTensor{self->first_moment(), self};
                             })
      .def_property_readonly("v",
                             [](const TrainStepPtr& self) {
                               return PyTensor{self->second_moment(), self};
                             })
      .def_readwrite("calls", &TrainStep::calls)
      .def_property("updates", &TrainStep::updates, &TrainStep::set_updates)
      .def_readwrite("dropout_seed", &TrainStep::dropout_seed);
}

}  // namespace llmcore::bindings
