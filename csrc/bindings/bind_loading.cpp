// What opening a checkpoint needs: stored matrices made float32, and checksums.
#include <pybind11/stl.h>

#include "bindings/exchange.h"
#include "core/error.h"
#include "ops/loading.h"

namespace llmcore::bindings {
namespace {

// NumPy lacks bfloat16: its bits come as uint16.
DType stored_dtype(const py::array& array) {
  const std::string name = py::str(array.dtype());
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  CHECK(name == "uint16", DTypeError,
        "widen: a source must be float32, float16 or bfloat16's bits in uint16, got ", name);
  return DType::kBFloat16;
}

StoredMatrix stored_matrix(const py::array& source, const Tensor& target) {
  const DType dtype = stored_dtype(source);
  const std::vector<int64_t> shape(source.shape(), source.shape() + source.ndim());
  CHECK(shape == shape_of(target) && (shape.size() == 1 || shape.size() == 2), ShapeError,
        "widen: source and target must be one vector or matrix, got ", py::str(py::cast(shape)),
        " and ", shape_string(target));
  const bool matrix = shape.size() == 2;
  return {.dtype = dtype,
          .x = static_cast<const char*>(source.data()),
          .rows = matrix ? shape[0] : 1,
          .cols = shape.back(),
          .row_stride = matrix ? source.strides(0) : 0,
          .col_stride = source.strides(matrix ? 1 : 0),
          .y = target.f32()};
}

std::vector<StoredMatrix> stored_matrices(const std::vector<py::array>& sources,
                                          const std::vector<PyTensor>& targets) {
  CHECK(sources.size() == targets.size(), ShapeError, "widen: ", sources.size(), " sources for ",
        targets.size(), " targets");
  std::vector<StoredMatrix> matrices;
  for (size_t i = 0; i < sources.size(); ++i) {
    const PyTensor& target = targets[i];
    check_same_device("widen", {}, target.view.device);
    CHECK(target.view.dtype == DType::kFloat32 && !target.read_only, DTypeError,
          "widen: a target must be float32 that can be written, got ",
          dtype_name(target.view.dtype));
    matrices.push_back(stored_matrix(sources[i], target.view));
  }
  return matrices;
}

void bound_widen(const std::vector<py::array>& sources, const std::vector<PyTensor>& targets) {
  const std::vector<StoredMatrix> matrices = stored_matrices(sources, targets);
  py::gil_scoped_release release;
  widen(op_context({}), matrices);
}

uint32_t bound_crc32(const py::buffer& data, uint32_t start, const std::vector<py::array>& sources,
                     const std::vector<PyTensor>& targets) {
  const py::buffer_info info = data.request();
  CHECK(info.ndim == 1 && info.strides[0] == info.itemsize, ShapeError,
        "crc32: data must lie in one piece");
  const std::vector<StoredMatrix> matrices = stored_matrices(sources, targets);
  py::gil_scoped_release release;
  return crc32(op_context({}), static_cast<const char*>(info.ptr), info.size * info.itemsize, start,
               matrices);
}

}  // namespace

void bind_loading(py::module_& module) {
  module.def("widen", &bound_widen, py::arg("sources"), py::arg("targets"));
  module.def("crc32", &bound_crc32, py::arg("data"), py::arg("start") = 0,
             py::arg("sources") = std::vector<py::array>(),
             py::arg("targets") = std::vector<PyTensor>());
}

}  // namespace llmcore::bindings
