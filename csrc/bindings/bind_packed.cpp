// Weights packed for inference: one matrix for tests of the kernels, and those of a model.
#include <pybind11/stl.h>

#include <optional>

#include "bindings/exchange.h"
#include "bindings/py_model.h"
#include "core/error.h"
#include "core/queue.h"
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

// What files hold of `count` outputs: codes, and scales but for bfloat16.
struct StoredArray {
  const char* dtype;
  std::vector<int64_t> shape;
};
StoredArray codes_form(DType format, int64_t count, int64_t depth) {
  if (format == DType::kPackedBFloat16) return {"uint16", {count, depth}};
  return {format == DType::kPackedInt8 ? "int8" : "uint8",
          {count, stored_code_bytes(format, depth)}};
}
StoredArray scales_form(DType format, int64_t count, int64_t depth) {
  if (format == DType::kPackedInt8) return {"float32", {count}};
  return {"uint16", {count, stored_scale_bytes(format, depth) / 2}};
}

void check_form(const char* name, const py::array& array, const StoredArray& form) {
  const std::string dtype = py::str(array.dtype());
  CHECK(dtype == form.dtype, DTypeError, name, " must be ", form.dtype, ", got ", dtype);
  const std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
  CHECK(shape == form.shape, ShapeError, name, " must be ", py::str(py::cast(form.shape)), ", got ",
        py::str(py::cast(shape)));
}

char* bytes_of(const py::array& array) {
  return static_cast<char*>(const_cast<void*>(array.data()));
}

py::tuple stored_of(const Context& context, const PackedRows& rows, int64_t count) {
  const DType format = rows.packed.dtype;
  const int64_t depth = rows.packed.dim(1);
  const auto make = [](const StoredArray& form) {
    return py::array(py::dtype(form.dtype), form.shape);
  };
  const py::array codes = make(codes_form(format, count, depth));
  const py::array scales = make(scales_form(format, count, depth));
  const StoredRowsArgs args{.of = rows,
                            .rows = count,
                            .codes = bytes_of(codes),
                            .row_stride = stored_code_bytes(format, depth),
                            .scales = bytes_of(scales)};
  {
    py::gil_scoped_release release;
    get_stored(context, args);
  }
  return py::make_tuple(codes, scales);
}

// Codes may be slices of rows, bfloat16 transposed as well; there are no scales of bfloat16.
StoredRowsArgs stored_args(const PackedRows& rows, int64_t count, const py::array& codes,
                           const std::optional<py::array>& scales) {
  const DType format = rows.packed.dtype;
  const int64_t depth = rows.packed.dim(1);
  const StoredArray form = codes_form(format, count, depth);
  check_form("codes", codes, form);
  StoredRowsArgs args{.of = rows, .rows = count, .codes = bytes_of(codes)};
  if (form.shape[1] == 1 || codes.strides(1) == codes.itemsize()) {
    args.row_stride = count == 1 ? stored_code_bytes(format, depth) : codes.strides(0);
  } else {
    CHECK(format == DType::kPackedBFloat16 && (count == 1 || codes.strides(0) == codes.itemsize()),
          ShapeError, "codes must lie in rows, or bfloat16 in columns");
    args.col_stride = codes.strides(1);
  }
  if (format == DType::kPackedBFloat16) return args;
  CHECK(scales.has_value(), ShapeError, "scales are missing");
  check_form("scales", *scales, scales_form(format, count, depth));
  CHECK((scales->flags() & py::array::c_style) != 0, ShapeError, "scales must lie in one piece");
  args.scales = bytes_of(*scales);
  return args;
}

PyTensor unpacked(const Context& context, const PackedRows& rows, int64_t count) {
  const PyTensor ids = allocate({count}, DType::kInt32, {});
  for (int64_t i = 0; i < count; ++i)
    ids.view.as<int32_t>()[i] = static_cast<int32_t>(rows.first + i);
  const PyTensor out = allocate({count, rows.packed.dim(1)}, DType::kFloat32, {});
  unpack_rows(context, {.packed = rows.packed, .rows = ids.view, .out = out.view});
  return out;
}

// Packed on the CPU; on the device of the weight it was made of there is a copy.
class PackedWeight {
 public:
  PackedWeight(const PyTensor& weight, const std::string& format)
      : buffer_(packed_bytes(format_from_name(format), weight.view.rows(), weight.view.cols())),
        host_(tensor_view(buffer_.data(), format_from_name(format), weight.view.rows(),
                          weight.view.cols())),
        view_(host_) {
    pack_weight(op_context({}), {.weight = moved_to(weight, {}).view, .to = {host_}});
    if (weight.view.device.type == DeviceType::kCpu) return;
    there_ = Buffer(buffer_.bytes(), Backing::kMemory, weight.view.device);
    view_.data = there_.data();
    view_.device = weight.view.device;
    update();
  }

  int64_t nbytes() const { return buffer_.bytes(); }
  py::tuple stored() const { return stored_of(op_context({}), {host_}, host_.dim(0)); }
  void set_stored(const py::array& codes, const std::optional<py::array>& scales, int64_t first) {
    llmcore::set_stored(
        op_context({}),
        stored_args({host_, first}, codes.ndim() > 0 ? codes.shape(0) : 0, codes, scales));
    update();
  }
  PyTensor unpack() const { return unpacked(op_context({}), {host_}, host_.dim(0)); }
  PyTensor rows(const PyTensor& ids) const {
    check_one_device("packed rows", PyTensor{view_}, ids);
    const PyTensor out = allocate({ids.view.numel(), view_.dim(1)}, DType::kFloat32, view_.device);
    unpack_rows(op_context(view_), {.packed = view_, .rows = ids.view, .out = out.view});
    return out;
  }
  void multiply(const PyTensor& a, const PyTensor& c, const PyTensor* bias,
                const std::string& activation, const PyTensor* residual, bool accumulate,
                const PyTensor* norm_weight, const PyTensor* norm_bias, float norm_eps,
                bool rms) const {
    check_one_device("matmul", PyTensor{view_}, a, c, bias, residual, norm_weight, norm_bias);
    const MatmulArgs args{.a = a.view,
                          .b = view_,
                          .c = c.view,
                          .transpose_b = true,
                          .accumulate = accumulate,
                          .norm = row_norm(norm_weight, norm_bias, norm_eps, rms),
                          .bias = view_of(bias),
                          .activation = activation_from_name(activation.c_str()),
                          .residual = view_of(residual)};
    py::gil_scoped_release release;
    matmul(op_context(c.view), args);
  }

 private:
  void update() {
    Queue* const queue = queue_of(view_.device);
    if (queue == nullptr) return;
    copy_bytes(queue, view_.data, host_.data, nbytes());
    wait(queue);
  }

  Buffer buffer_, there_;
  Tensor host_, view_;  // what is stored, and what is multiplied with
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
      .def("stored", &PackedWeight::stored)
      .def("set_stored", &PackedWeight::set_stored, py::arg("codes"),
           py::arg("scales") = py::none(), py::arg("first") = 0)
      .def("unpack", &PackedWeight::unpack)
      .def("rows", &PackedWeight::rows, py::arg("ids"))
      .def("matmul", &PackedWeight::multiply, py::arg("a"), py::arg("c"), py::kw_only(),
           py::arg("bias") = py::none(), py::arg("activation") = "none",
           py::arg("residual") = py::none(), py::arg("accumulate") = false,
           py::arg("norm_weight") = py::none(), py::arg("norm_bias") = py::none(),
           py::arg("norm_eps") = 1e-5f, py::arg("rms") = false);

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
          "stored",
          [](const ModelPtr& model, const std::string& name) {
            const auto [rows, count] = rows_of(*model, name);
            return stored_of(model->context(), rows, count);
          },
          py::arg("name"))
      .def(
          "set_stored",
          [](const ModelPtr& model, const std::string& name, const py::array& codes,
             const std::optional<py::array>& scales) {
            const auto [rows, count] = rows_of(*model, name);
            const StoredRowsArgs args = stored_args(rows, count, codes, scales);
            exclusively(*model, [&] { set_stored(model->context(), args); });
          },
          py::arg("name"), py::arg("codes"), py::arg("scales") = py::none());
}

}  // namespace llmcore::bindings
