// llmcore.Tensor: construction, NumPy and DLPack exchange, conversion.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/exchange.h"
#include "bindings/py_tensor.h"
#include "core/buffer.h"
#include "core/error.h"
#include "core/queue.h"
#include "ops/backend.h"

namespace llmcore::bindings {
namespace {

PyTensor moved(const PyTensor& tensor, const std::optional<std::string>& device,
               const std::optional<std::string>& dtype) {
  PyTensor result = dtype ? converted(tensor, dtype_from_name(dtype->c_str())) : tensor;
  if (!device) return result;
  return moved_to(result, device_from_name(*device));
}

// The protocol of numpy.asarray: `copy` None: if needed, True: always, False: never.
py::object as_array(const PyTensor& tensor, const py::object& dtype, const py::object& copy) {
  const bool never = !copy.is_none() && !copy.cast<bool>();
  py::object array = to_numpy(tensor);
  const bool retyped =
      !dtype.is_none() && !py::object(array.attr("dtype")).equal(py::dtype::from_args(dtype));
  if (never && (retyped || tensor.view.dtype == DType::kBFloat16))
    throw py::value_error(str("a ", dtype_name(tensor.view.dtype),
                              " tensor cannot be a NumPy array of that dtype without a copy"));
  if (retyped) return array.attr("astype")(dtype);
  return !copy.is_none() && copy.cast<bool>() ? array.attr("copy")() : array;
}

py::object item(const PyTensor& tensor) {
  CHECK(tensor.view.numel() == 1, ShapeError,
        "a number or a condition is a tensor of one element, got shape ",
        shape_string(tensor.view));
  return to_numpy(tensor).attr("item")();
}

// What a tensor of one element is where Python wants a number: float() and int() of it, an index,
// a condition, the text of a format such as ".3f".
py::object index(const PyTensor& tensor) {
  const DType dtype = tensor.view.dtype;
  CHECK(dtype == DType::kInt32 || dtype == DType::kInt64 || dtype == DType::kInt8, DTypeError,
        "only a tensor of integers is an index, got ", dtype_name(dtype));
  return item(tensor);
}
py::str format(const PyTensor& tensor, const py::str& spec) {
  const bool number = tensor.view.rank == 0 || py::len(spec) > 0;
  return (number ? item(tensor) : py::str(py::cast(tensor))).attr("__format__")(spec);
}

std::string repr(const PyTensor& tensor) {
  return str("llmcore.Tensor(shape=", shape_string(tensor.view), ", dtype='",
             dtype_name(tensor.view.dtype), "', device='", device_name(tensor.view.device), "')");
}

PyTensor reshape(const PyTensor& tensor, const std::vector<int64_t>& shape) {
  PyTensor result = tensor;
  result.view = view_with_shape(tensor.view.data, tensor.view.dtype, shape);
  result.view.device = tensor.view.device;
  CHECK(result.view.numel() == tensor.view.numel(), ShapeError,
        "reshape: ", shape_string(tensor.view), " has ", tensor.view.numel(), " elements, ",
        shape_string(result.view), " would have ", result.view.numel());
  return result;
}

}  // namespace

PyTensor allocate(const std::vector<int64_t>& shape, DType dtype, Device device) {
  PyTensor tensor{view_with_shape(nullptr, dtype, shape), nullptr};
  tensor.view.device = device;
  // At least one byte, so that a tensor of no elements is not mistaken for an absent one.
  auto buffer = std::make_shared<Buffer>(std::max<int64_t>(tensor.view.nbytes(), 1),
                                         Backing::kMemory, device);
  tensor.view.data = buffer->data();
  tensor.owner = buffer;
  return tensor;
}

PyTensor as_tensor(const py::object& source) {
  if (py::isinstance<PyTensor>(source)) return source.cast<PyTensor>();
  if (py::isinstance<py::array>(source)) return from_numpy(source, Sharing::kCopyIfNeeded);
  if (py::hasattr(source, "__dlpack__")) return from_dlpack(source, Sharing::kCopyIfNeeded);
  py::array array = py::module_::import("numpy").attr("asarray")(source);
  if (array.dtype().kind() == 'f') array = array.attr("astype")("float32");
  return from_numpy(array, Sharing::kCopyIfNeeded);
}

PyTensor in_place_tensor(const py::object& source) {
  PyTensor tensor;
  if (py::isinstance<PyTensor>(source))
    tensor = source.cast<PyTensor>();
  else if (py::isinstance<py::array>(source))
    tensor = from_numpy(source, Sharing::kRequired);
  else if (py::hasattr(source, "__dlpack__"))
    tensor = from_dlpack(source, Sharing::kRequired);
  else
    throw DTypeError(
        "tensor: it must be a NumPy array, a Tensor or a DLPack array to be updated in place");
  CHECK(!tensor.read_only, ShapeError, "tensor: it is read-only; pass a copy");
  return tensor;
}

Context op_context(const Tensor& on) {
  Context context = thread_context(on.device);
  if (on.device.type != DeviceType::kCpu && on.dtype == DType::kBFloat16)
    context.activations = DType::kBFloat16;
  return context;
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
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__", &dlpack_device)
      .def("__len__",
           [](const PyTensor& t) {
             CHECK(t.view.rank > 0, DTypeError, "len() of a tensor without axes");
             return t.view.shape[0];
           })
      .def("item", &item, "The only element, as a Python number.")
      .def(
          "tolist", [](const PyTensor& t) { return to_numpy(t).attr("tolist")(); },
          "The elements as nested lists of Python numbers.")
      .def("__float__", [](const PyTensor& t) { return py::float_(item(t)); })
      .def("__int__", [](const PyTensor& t) { return py::int_(item(t)); })
      .def("__index__", &index)
      .def("__bool__", [](const PyTensor& t) { return py::cast<bool>(py::bool_(item(t))); })
      .def("__format__", &format)
      .def("__repr__", &repr);

  module.def("as_tensor", &as_tensor, py::arg("source"));
  module.def("in_place_tensor", &in_place_tensor, py::arg("source"));
  module.def(
      "copy",
      [](const PyTensor& source, const PyTensor& target) {
        CHECK(source.view.nbytes() == target.view.nbytes(), ShapeError, "copy: sizes differ, ",
              source.view.nbytes(), " and ", target.view.nbytes(), " bytes");
        CHECK(!target.read_only, ShapeError, "copy: target is read-only");
        copy_tensor(source.view, target.view);
      },
      py::kw_only(), py::arg("source"), py::arg("target"));
  module.def(
      "from_dlpack",
      [](const py::object& source) { return from_dlpack(source, Sharing::kCopyIfNeeded); },
      py::arg("source"), R"doc(Share the memory of a DLPack array (NumPy, PyTorch, JAX, ...).

Args:
    source: an array in the memory of the CPU, or of a GPU that can be used, of float32, bfloat16,
        float16, int32, int64, int8 or bool. One that is not contiguous is copied on the CPU.

Returns:
    A Tensor that keeps `source`'s memory alive.

Raises:
    DTypeError: not a DLPack array, or another element type.
    DeviceError: the array is on a device that cannot be used, with the reason.
    ShapeError: the array is on a GPU and not contiguous.

Example:
    >>> import numpy as np, llmcore
    >>> array = np.zeros(2, np.float32)
    >>> shared = llmcore.from_dlpack(array)
    >>> array[1] = 5
    >>> shared.numpy()
    array([0., 5.], dtype=float32)
)doc");
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
