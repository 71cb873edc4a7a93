// Weights packed for inference: one matrix for tests of the kernels, and those of a model.
#include <pybind11/stl.h>

#include "bindings/py_model.h"
#include "core/error.h"
#include "ops/packed.h"

namespace llmcore::bindings {
namespace {

DType format_from_name(const std::string& name) {
  for (const auto& [known, format] :
       {std::pair{"bfloat16", DType::kPackedBFloat16}, std::pair{"int8", DType::kPackedInt8},
        std::pair{"int4", DType::kPackedInt4}})
    if (name == known) return format;
  throw ConfigError(str("weights can be packed as bfloat16, int8 or int4, not '", name, "'"));
}

const char* format_name(DType format) {
  switch (format) {
    case DType::kPackedBFloat16:
      return "bfloat16";
    case DType::kPackedInt8:
      return "int8";
    case DType::kPackedInt4:
      return "int4";
    default:
      return "float32";
  }
}

// Codes and scales of some rows, in new tensors.
py::tuple codes_of(const Context& context, const PackedRows& rows, int64_t count) {
  const int64_t depth = rows.packed.dim(1), groups = (depth + kInt4Group - 1) / kInt4Group;
  const PyTensor codes = allocate({count, depth}, DType::kInt8, {});
  const PyTensor scales = rows.packed.dtype == DType::kPackedInt8
                              ? allocate({count}, DType::kFloat32, {})
                              : allocate({count, groups}, DType::kFloat32, {});
  get_codes(context, {.of = rows, .codes = codes.view, .scales = scales.view});
  return py::make_tuple(codes, scales);
}

PyTensor unpacked(const Context& context, const PackedRows& rows, int64_t count) {
  const PyTensor ids = allocate({count}, DType::kInt32, {});
  for (int64_t i = 0; i < count; ++i)
    ids.view.as<int32_t>()[i] = static_cast<int32_t>(rows.first + i);
  const PyTensor out = allocate({count, rows.packed.dim(1)}, DType::kFloat32, {});
  unpack_rows(context, {.packed = rows.packed, .rows = ids.view, .out = out.view});
  return out;
}

class PackedWeight {
 public:
  PackedWeight(const PyTensor& weight, const std::string& format)
      : buffer_(packed_bytes(format_from_name(format), weight.view.rows(), weight.view.cols())),
        view_(tensor_view(buffer_.data(), format_from_name(format), weight.view.rows(),
                          weight.view.cols())) {
    pack_weight(op_context({}), {.weight = weight.view, .to = {view_}});
  }

  int64_t nbytes() const { return buffer_.bytes(); }
  py::tuple codes() const { return codes_of(op_context({}), {view_}, view_.dim(0)); }
  PyTensor unpack() const { return unpacked(op_context({}), {view_}, view_.dim(0)); }
  PyTensor rows(const PyTensor& ids) const {
    const PyTensor out = allocate({ids.view.numel(), view_.dim(1)}, DType::kFloat32, {});
    unpack_rows(op_context({}), {.packed = view_, .rows = ids.view, .out = out.view});
    return out;
  }
  void multiply(const PyTensor& a, const PyTensor& c, const PyTensor* bias,
                const std::string& activation, const PyTensor* residual, bool accumulate) const {
    const MatmulArgs args{.a = a.view,
                          .b = view_,
                          .c = c.view,
                          .transpose_b = true,
                          .accumulate = accumulate,
                          .bias = view_of(bias),
                          .activation = activation_from_name(activation.c_str()),
                          .residual = view_of(residual)};
    py::gil_scoped_release release;
    matmul(op_context(c.view), args);
  }

 private:
  Buffer buffer_;
  Tensor view_;
};

// The packed rows of a model's parameter `name`, and how many there are.
std::pair<PackedRows, int64_t> rows_of(Transformer& model, const std::string& name) {
  const int index = model.params().find(name);
  const PackedRows rows = model.params().packed_rows(index);
  CHECK(rows.packed, ConfigError, "parameter ", name, " is not packed");
  return {rows, model.params().table()[index].shape[0]};
}

std::vector<std::string> packed_names(const ModelPtr& model) {
  std::vector<std::string> names;
  for (const ParamInfo& info : model->params().table())
    if (info.offset < 0) names.push_back(info.name);
  return names;
}

}  // namespace

void bind_packed(py::module_& module) {
  py::class_<PackedWeight>(module, "PackedWeight")
      .def(py::init<const PyTensor&, const std::string&>(), py::arg("weight"), py::arg("format"))
      .def_property_readonly("nbytes", &PackedWeight::nbytes)
      .def("codes", &PackedWeight::codes)
      .def("unpack", &PackedWeight::unpack)
      .def("rows", &PackedWeight::rows, py::arg("ids"))
      .def("matmul", &PackedWeight::multiply, py::arg("a"), py::arg("c"), py::kw_only(),
           py::arg("bias") = py::none(), py::arg("activation") = "none",
           py::arg("residual") = py::none(), py::arg("accumulate") = false);

  py::class_<Transformer, ModelPtr>(
      py::reinterpret_borrow<py::class_<Transformer, ModelPtr>>(module.attr("Transformer")))
      .def(
          "pack",
          [](const ModelPtr& model, const std::string& format, bool zeros) {
            const DType wanted = format_from_name(format);
            exclusively(*model, [&] {
              if (zeros)
                model->params().pack_zeros(wanted);
              else
                model->params().pack(model->context(), wanted);
            });
          },
          py::arg("format"), py::arg("zeros") = false)
      .def_property_readonly(
          "format", [](const ModelPtr& model) { return format_name(model->params().format()); })
      .def("packed_names", &packed_names)
      .def(
          "set_packed",
          [](const ModelPtr& model, const std::string& name, const PyTensor& weight) {
            const auto [rows, count] = rows_of(*model, name);
            check_tensor("set_packed", name.c_str(), weight.view, "[R, K]",
                         {count, rows.packed.dim(1)});
            const PackArgs args{.weight = weight.view, .to = rows};
            exclusively(*model, [&] { pack_weight(model->context(), args); });
          },
          py::arg("name"), py::arg("weight"))
      .def(
          "unpack",
          [](const ModelPtr& model, const std::string& name) {
            const auto [rows, count] = rows_of(*model, name);
            return unpacked(model->context(), rows, count);
          },
          py::arg("name"))
      .def(
          "codes",
          [](const ModelPtr& model, const std::string& name) {
            const auto [rows, count] = rows_of(*model, name);
            return codes_of(model->context(), rows, count);
          },
          py::arg("name"))
      .def(
          "set_codes",
          [](const ModelPtr& model, const std::string& name, const PyTensor& codes,
             const PyTensor& scales) {
            const auto [rows, count] = rows_of(*model, name);
            check_tensor("set_codes", name.c_str(), codes.view, "[R, K]",
                         {count, rows.packed.dim(1)}, DType::kInt8);
            const CodesArgs args{.of = rows, .codes = codes.view, .scales = scales.view};
            exclusively(*model, [&] { set_codes(model->context(), args); });
          },
          py::arg("name"), py::arg("codes"), py::arg("scales"));
}

}  // namespace llmcore::bindings
