// llmcore.Tensor: construction, NumPy and DLPack exchange, conversion.
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/dlpack.h"
#include "bindings/py_tensor.h"
#include "core/buffer.h"
#include "core/error.h"
#include "ops/backend.h"

namespace llmcore::bindings {
namespace {

struct DTypeRow {
  DType dtype;
  DLDataType dlpack;
  const char* numpy;  // empty: NumPy has no such type
};

constexpr DTypeRow kDTypes[] = {
    {DType::kFloat32, {2, 32, 1}, "float32"}, {DType::kBFloat16, {4, 16, 1}, ""},
    {DType::kFloat16, {2, 16, 1}, "float16"}, {DType::kInt32, {0, 32, 1}, "int32"},
    {DType::kInt64, {0, 64, 1}, "int64"},     {DType::kInt8, {0, 8, 1}, "int8"},
    {DType::kBool, {6, 8, 1}, "bool"},
};

const DTypeRow& row_of(DType dtype) {
  return kDTypes[static_cast<int>(dtype)];
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  return {tensor.shape, tensor.shape + tensor.rank};
}

Tensor view_with_shape(void* data, DType dtype, const int64_t* shape, int64_t rank) {
  CHECK(rank <= kMaxRank, ShapeError, "tensor: at most ", kMaxRank, " axes are supported, got ",
        rank);
  Tensor view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(rank);
  for (int64_t axis = 0; axis < rank; ++axis) view.shape[axis] = shape[axis];
  return view;
}

// Copies a strided array into a dense one. Strides are in elements.
void copy_strided(char* to, const char* from, const DLTensor& source, int64_t item, int axis) {
  int64_t inner = item;
  for (int i = axis + 1; i < source.ndim; ++i) inner *= source.shape[i];
  for (int64_t i = 0; i < source.shape[axis]; ++i) {
    const char* place = from + i * source.strides[axis] * item;
    if (axis + 1 == source.ndim)
      std::memcpy(to + i * inner, place, item);
    else
      copy_strided(to + i * inner, place, source, item, axis + 1);
  }
}

bool is_dense(const DLTensor& source) {
  if (source.strides == nullptr) return true;
  int64_t expected = 1;
  for (int axis = source.ndim - 1; axis >= 0; --axis) {
    if (source.shape[axis] != 1 && source.strides[axis] != expected) return false;
    expected *= source.shape[axis];
  }
  return true;
}

PyTensor from_numpy(py::array array) {
  const std::string name = py::str(array.dtype().attr("name"));
  for (const DTypeRow& row : kDTypes) {
    if (name != row.numpy) continue;
    array = py::array::ensure(array, py::array::c_style);
    CHECK(array, DTypeError, "tensor: the array could not be read");
    const std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
    PyTensor tensor{
        view_with_shape(const_cast<void*>(array.data()), row.dtype, shape.data(), array.ndim()),
        nullptr};
    // Dropped with the GIL held, whoever is last to let go.
    tensor.owner = std::shared_ptr<void>(new py::object(std::move(array)), [](void* object) {
      py::gil_scoped_acquire gil;
      delete static_cast<py::object*>(object);
    });
    return tensor;
  }
  throw DTypeError(str("tensor: dtype must be float32, float16, int32, int64, int8 or bool, got ",
                       name, "; convert with .astype('float32')"));
}

PyTensor from_dlpack(const py::object& source) {
  py::capsule capsule = source.attr("__dlpack__")();
  CHECK(std::strcmp(capsule.name(), "dltensor") == 0, DTypeError,
        "from_dlpack: the capsule was already used");
  auto* managed = capsule.get_pointer<DLManagedTensor>();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  std::shared_ptr<void> owner(managed, [](void* pointer) {
    auto* held = static_cast<DLManagedTensor*>(pointer);
    py::gil_scoped_acquire gil;
    if (held->deleter != nullptr) held->deleter(held);
  });
  const DLTensor& array = managed->dl_tensor;
  CHECK(array.device.device_type == 1, DeviceError,
        "from_dlpack: only arrays in CPU memory can be taken, got DLPack device type ",
        array.device.device_type);
  for (const DTypeRow& row : kDTypes) {
    if (std::memcmp(&row.dlpack, &array.dtype, sizeof(DLDataType)) != 0) continue;
    char* data = static_cast<char*>(array.data) + array.byte_offset;
    PyTensor tensor{view_with_shape(data, row.dtype, array.shape, array.ndim), owner};
    if (is_dense(array)) return tensor;
    PyTensor dense = allocate(shape_of(tensor.view), row.dtype, {});
    if (tensor.view.numel() > 0)
      copy_strided(dense.view.as<char>(), data, array, dtype_size(row.dtype), 0);
    return dense;
  }
  throw DTypeError(
      str("from_dlpack: dtype must be float32, bfloat16, float16, int32, int64, int8 or "
          "bool, got DLPack type code ",
          int{array.dtype.code}, " of ", int{array.dtype.bits}, " bits"));
}

// Element conversion goes through double: exact for every value of every type but large int64.
double read_element(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return tensor.as<float>()[i];
    case DType::kBFloat16:
      return to_float(tensor.as<BFloat16>()[i]);
    case DType::kFloat16:
      return to_float(tensor.as<Float16>()[i]);
    case DType::kInt32:
      return tensor.as<int32_t>()[i];
    case DType::kInt64:
      return static_cast<double>(tensor.as<int64_t>()[i]);
    case DType::kInt8:
      return tensor.as<int8_t>()[i];
    case DType::kBool:
      return tensor.as<bool>()[i] ? 1.0 : 0.0;
  }
  return 0.0;
}

void write_element(const Tensor& tensor, int64_t i, double value) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      tensor.as<float>()[i] = static_cast<float>(value);
      return;
    case DType::kBFloat16:
      tensor.as<BFloat16>()[i] = to_bfloat16(static_cast<float>(value));
      return;
    case DType::kFloat16:
      tensor.as<Float16>()[i] = to_float16(static_cast<float>(value));
      return;
    case DType::kInt32:
      tensor.as<int32_t>()[i] = static_cast<int32_t>(value);
      return;
    case DType::kInt64:
      tensor.as<int64_t>()[i] = static_cast<int64_t>(value);
      return;
    case DType::kInt8:
      tensor.as<int8_t>()[i] = static_cast<int8_t>(value);
      return;
    case DType::kBool:
      tensor.as<bool>()[i] = value != 0.0;
      return;
  }
}

PyTensor converted(const PyTensor& tensor, DType dtype) {
  if (tensor.view.dtype == dtype) return tensor;
  PyTensor result = allocate(shape_of(tensor.view), dtype, tensor.view.device);
  const int64_t count = tensor.view.numel();
  for (int64_t i = 0; i < count; ++i) write_element(result.view, i, read_element(tensor.view, i));
  return result;
}

PyTensor moved(const PyTensor& tensor, const std::optional<std::string>& device,
               const std::optional<std::string>& dtype) {
  if (device) device_from_name(*device);  // only the CPU gets past this in a build without CUDA
  return dtype ? converted(tensor, dtype_from_name(dtype->c_str())) : tensor;
}

py::array to_numpy(const PyTensor& tensor) {
  if (row_of(tensor.view.dtype).numpy[0] == '\0')
    return to_numpy(converted(tensor, DType::kFloat32));
  auto* owner = new std::shared_ptr<void>(tensor.owner);
  py::capsule base(owner, [](void* held) { delete static_cast<std::shared_ptr<void>*>(held); });
  return py::array(py::dtype(row_of(tensor.view.dtype).numpy), shape_of(tensor.view),
                   tensor.view.data, base);
}

// What a DLPack consumer holds on to.
struct Exported {
  DLManagedTensor managed{};
  PyTensor tensor;
  std::vector<int64_t> shape;
};

py::capsule to_dlpack(const PyTensor& tensor, const py::kwargs&) {
  auto* exported = new Exported{.tensor = tensor, .shape = shape_of(tensor.view)};
  exported->managed = {
      .dl_tensor = {.data = tensor.view.data,
                    .device = {1, 0},
                    .ndim = tensor.view.rank,
                    .dtype = row_of(tensor.view.dtype).dlpack,
                    .shape = exported->shape.data(),
                    .strides = nullptr,
                    .byte_offset = 0},
      .manager_ctx = exported,
      .deleter = [](DLManagedTensor* self) { delete static_cast<Exported*>(self->manager_ctx); }};
  return py::capsule(&exported->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // a consumer took it over
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

py::object as_array(const PyTensor& tensor, const py::object& dtype, const py::object& copy) {
  py::object array = to_numpy(tensor);
  const bool force = !copy.is_none() && copy.cast<bool>();
  if (!dtype.is_none()) return array.attr("astype")(dtype, py::arg("copy") = force);
  return force ? array.attr("copy")() : array;
}

std::string repr(const PyTensor& tensor) {
  return str("llmcore.Tensor(shape=", shape_string(tensor.view), ", dtype='",
             dtype_name(tensor.view.dtype), "', device='", device_name(tensor.view.device), "')");
}

PyTensor reshape(const PyTensor& tensor, const std::vector<int64_t>& shape) {
  PyTensor result{view_with_shape(tensor.view.data, tensor.view.dtype, shape.data(),
                                  static_cast<int64_t>(shape.size())),
                  tensor.owner};
  result.view.device = tensor.view.device;
  CHECK(result.view.numel() == tensor.view.numel(), ShapeError,
        "reshape: ", shape_string(tensor.view), " has ", tensor.view.numel(), " elements, ",
        shape_string(result.view), " would have ", result.view.numel());
  return result;
}

}  // namespace

PyTensor allocate(const std::vector<int64_t>& shape, DType dtype, Device device) {
  for (int64_t size : shape)
    CHECK(size >= 0, ShapeError, "zeros: axis sizes must not be negative, got ", size);
  PyTensor tensor{view_with_shape(nullptr, dtype, shape.data(), static_cast<int64_t>(shape.size())),
                  nullptr};
  tensor.view.device = device;
  // At least one byte, so that a tensor of no elements is not mistaken for an absent one.
  auto buffer = std::make_shared<Buffer>(std::max<int64_t>(tensor.view.nbytes(), 1));
  tensor.view.data = buffer->data();
  tensor.owner = buffer;
  return tensor;
}

PyTensor as_tensor(const py::object& source) {
  if (py::isinstance<PyTensor>(source)) return source.cast<PyTensor>();
  if (py::isinstance<py::array>(source)) return from_numpy(source);
  if (py::hasattr(source, "__dlpack__")) return from_dlpack(source);
  py::array array = py::module_::import("numpy").attr("asarray")(source);
  if (array.dtype().kind() == 'f') array = array.attr("astype")("float32");
  return from_numpy(array);
}

Context op_context(const Tensor& on) {
  thread_local std::unique_ptr<Arena> arena = std::make_unique<Arena>();
  return {.device = on.device, .kernels = &kernels_for(on.device), .arena = arena.get()};
}

void bind_tensor(py::module_& module) {
  py::class_<PyTensor>(module, "Tensor", R"doc(A dense row-major array on one device.

NumPy and any DLPack library can read and write it without a copy while it is on the CPU.

Example:
    >>> import llmcore
    >>> x = llmcore.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> x
    llmcore.Tensor(shape=[2, 2], dtype='float32', device='cpu')
    >>> float(x.numpy().sum())
    10.0
)doc")
      .def_property_readonly(
          "shape", [](const PyTensor& t) { return py::tuple(py::cast(shape_of(t.view))); },
          "Axis sizes, a tuple of int.")
      .def_property_readonly(
          "ndim", [](const PyTensor& t) { return t.view.rank; }, "Number of axes.")
      .def_property_readonly(
          "dtype", [](const PyTensor& t) { return dtype_name(t.view.dtype); },
          "Element type, a string such as 'float32'.")
      .def_property_readonly(
          "device", [](const PyTensor& t) { return device_name(t.view.device); },
          "'cpu' or 'cuda:<index>'.")
      .def_property_readonly(
          "size", [](const PyTensor& t) { return t.view.numel(); }, "Number of elements.")
      .def_property_readonly(
          "nbytes", [](const PyTensor& t) { return t.view.nbytes(); },
          "Size of the elements in bytes.")
      .def("numpy", &to_numpy,
           "A NumPy array that shares this tensor's memory; of bfloat16, a float32 copy.")
      .def("reshape", &reshape, py::arg("shape"),
           "The same memory under another shape of as many elements; ShapeError otherwise.")
      .def("to", &moved, py::kw_only(), py::arg("device") = py::none(),
           py::arg("dtype") = py::none(),
           "This tensor on another device or as another dtype; itself where nothing changes.")
      .def("__array__", &as_array, py::arg("dtype") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack__", &to_dlpack)
      .def("__dlpack_device__", [](const PyTensor&) { return py::make_tuple(1, 0); })
      .def("__len__",
           [](const PyTensor& t) {
             CHECK(t.view.rank > 0, DTypeError, "len() of a tensor without axes");
             return t.view.shape[0];
           })
      .def("__repr__", &repr);

  module.def("as_tensor", &as_tensor, py::arg("source"));
  module.def(
      "copy",
      [](const PyTensor& source, const PyTensor& target) {
        CHECK(source.view.nbytes() == target.view.nbytes(), ShapeError, "copy: sizes differ, ",
              source.view.nbytes(), " and ", target.view.nbytes(), " bytes");
        std::memmove(target.view.data, source.view.data, source.view.nbytes());
      },
      py::kw_only(), py::arg("source"), py::arg("target"));
  module.def("from_dlpack", &from_dlpack, py::arg("source"));
  // Two names for one thing: contents of `empty` are not promised, and the tests fill it with NaN.
  const auto fresh = [](const std::vector<int64_t>& shape, const std::string& dtype,
                        const std::string& device) {
    return allocate(shape, dtype_from_name(dtype.c_str()), device_from_name(device));
  };
  for (const char* name : {"zeros", "empty"})
    module.def(name, fresh, py::arg("shape"), py::arg("dtype") = "float32",
               py::arg("device") = "cpu");
}

}  // namespace llmcore::bindings
