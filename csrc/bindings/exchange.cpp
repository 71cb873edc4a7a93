// NumPy and DLPack exchange: whose memory a Tensor shares, and who may share a Tensor's.
#include "bindings/exchange.h"

#include <pybind11/stl.h>

#include <cstring>
#include <limits>

#include "bindings/dlpack.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/queue.h"
#include "ops/backend.h"
#include "ops/elementwise.h"

namespace llmcore::bindings {
namespace {

constexpr const char* kPlain = "dltensor";
constexpr const char* kVersioned = "dltensor_versioned";
constexpr uint64_t kReadOnly = 1, kCopied = 2;

struct DTypeRow {
  DType dtype;
  DLDataType dlpack;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kFloat32, {2, 32, 1}}, {DType::kBFloat16, {4, 16, 1}}, {DType::kFloat16, {2, 16, 1}},
    {DType::kInt32, {0, 32, 1}},   {DType::kInt64, {0, 64, 1}},    {DType::kInt8, {0, 8, 1}},
    {DType::kBool, {6, 8, 1}},
};

constexpr const char* kKnownDTypes =
    "dtype must be float32, bfloat16, float16, int32, int64, int8 or bool";

// Integer types of NumPy that no Tensor has, and the one that holds all their values.
struct WiderRow {
  const char* numpy;
  const char* wider;
};
constexpr WiderRow kWider[] = {
    {"uint8", "int32"}, {"int16", "int32"}, {"uint16", "int32"}, {"uint32", "int64"}};

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
    if (source.shape[axis] == 0) return true;
    if (source.shape[axis] != 1 && source.strides[axis] != expected) return false;
    expected *= source.shape[axis];
  }
  return true;
}

constexpr const char* kNotDense =
    "tensor: it is not contiguous in memory and would have to be copied; make it contiguous first";

// Where an array is; what its producer has asked of a GPU is done when this returns.
Device device_of(const DLDevice& device) {
  if (device.device_type == kDLCpu || device.device_type == kDLPinned) return {};
  CHECK(device.device_type == kDLCuda, DeviceError,
        "from_dlpack: only arrays in the memory of the CPU or of an NVIDIA GPU can be taken, got "
        "DLPack device type ",
        device.device_type, "; copy it to the CPU first");
  const std::string reason = cuda_unavailable_reason();
  CHECK(reason.empty(), DeviceError, "from_dlpack: the array is on an NVIDIA GPU, and ", reason,
        "; copy it to the CPU first");
  gpu::wait_for_device(device.device_id);
  return {DeviceType::kCuda, device.device_id};
}

// Takes over a capsule's array: its consumer's name, and the call that lets it go.
struct Imported {
  const DLTensor* array;
  std::shared_ptr<void> owner;
  bool read_only;
};

template <class Managed>
std::shared_ptr<void> take_over(const py::capsule& capsule, const char* used_name) {
  auto* managed = capsule.get_pointer<Managed>();
  PyCapsule_SetName(capsule.ptr(), used_name);
  return std::shared_ptr<void>(managed, [](void* pointer) {
    auto* held = static_cast<Managed*>(pointer);
    py::gil_scoped_acquire gil;
    if (held->deleter != nullptr) held->deleter(held);
  });
}

Imported take_over(const py::capsule& capsule) {
  if (std::strcmp(capsule.name(), kVersioned) == 0) {
    auto owner = take_over<DLManagedTensorVersioned>(capsule, "used_dltensor_versioned");
    const auto* managed = static_cast<const DLManagedTensorVersioned*>(owner.get());
    CHECK(managed->version.major == 1, DTypeError, "from_dlpack: the array comes as DLPack ",
          managed->version.major, ".", managed->version.minor,
          ", only 1.x and older are understood");
    return {&managed->dl_tensor, owner, (managed->flags & kReadOnly) != 0};
  }
  CHECK(std::strcmp(capsule.name(), kPlain) == 0, DTypeError,
        "from_dlpack: the capsule was already used, its name is '", capsule.name(), "'");
  auto owner = take_over<DLManagedTensor>(capsule, "used_dltensor");
  return {&static_cast<const DLManagedTensor*>(owner.get())->dl_tensor, owner, false};
}

// Producers from before DLPack 1.0 do not know the argument.
py::capsule request_capsule(const py::object& source) {
  try {
    return source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return source.attr("__dlpack__")();
}

// What a DLPack consumer holds on to: its copy of the tensor.
template <class Managed>
struct Exported {
  Managed managed{};
  PyTensor tensor;
  std::vector<int64_t> shape;
};

DLDevice dlpack_device(Device device) {
  return {device.type == DeviceType::kCpu ? kDLCpu : kDLCuda, device.index};
}

template <class Managed>
Managed* export_array(const PyTensor& tensor) {
  auto* exported =
      new Exported<Managed>{.managed = {}, .tensor = tensor, .shape = shape_of(tensor.view)};
  Managed& managed = exported->managed;
  managed.dl_tensor = {.data = tensor.view.data,
                       .device = dlpack_device(tensor.view.device),
                       .ndim = tensor.view.rank,
                       .dtype = kDTypes[static_cast<int>(tensor.view.dtype)].dlpack,
                       .shape = exported->shape.data(),
                       .strides = nullptr,
                       .byte_offset = 0};
  managed.manager_ctx = exported;
  managed.deleter = [](Managed* self) {
    delete static_cast<Exported<Managed>*>(self->manager_ctx);
  };
  return &managed;
}

// A capsule that no consumer took over lets its array go.
template <class Managed>
void destroy_capsule(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  managed->deleter(managed);
}

// Whether a GPU converts by itself.
bool can_cast(DType from, DType to) {
  const auto is_half = [](DType type) {
    return type == DType::kBFloat16 || type == DType::kFloat16;
  };
  return (from == DType::kFloat32 && is_half(to)) || (is_half(from) && to == DType::kFloat32);
}

}  // namespace

std::vector<int64_t> shape_of(const Tensor& tensor) {
  return {tensor.shape, tensor.shape + tensor.rank};
}

Tensor view_with_shape(void* data, DType dtype, const std::vector<int64_t>& shape) {
  CHECK(shape.size() <= kMaxRank, ShapeError, "tensor: at most ", kMaxRank,
        " axes are supported, got ", shape.size());
  Tensor view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(shape.size());
  int64_t bytes = dtype_size(dtype);
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    const int64_t size = shape[axis];
    CHECK(size >= 0, ShapeError, "tensor: axis sizes must not be negative, got ", size);
    CHECK(size == 0 || bytes <= std::numeric_limits<int64_t>::max() / size, OutOfMemory,
          "out of memory: a tensor with an axis of ", size, " has more bytes than can be counted");
    if (size > 0) bytes *= size;
    view.shape[axis] = size;
  }
  return view;
}

PyTensor converted(const PyTensor& tensor, DType dtype) {
  if (tensor.view.dtype == dtype) return tensor;
  const Device device = tensor.view.device;
  const bool on_cpu = device.type == DeviceType::kCpu;
  if (!on_cpu && !can_cast(tensor.view.dtype, dtype))
    return moved_to(converted(moved_to(tensor, {}), dtype), device);
  PyTensor result = allocate(shape_of(tensor.view), dtype, device);
  if (!on_cpu) {
    cast(op_context(tensor.view), {.x = tensor.view, .y = result.view});
    return result;
  }
  convert(tensor.view, result.view);
  return result;
}

PyTensor moved_to(const PyTensor& tensor, Device device) {
  const Device& from = tensor.view.device;
  if (device.type == from.type && device.index == from.index) return tensor;
  PyTensor moved = allocate(shape_of(tensor.view), tensor.view.dtype, device);
  py::gil_scoped_release release;
  copy_tensor(tensor.view, moved.view);
  return moved;
}

PyTensor from_numpy(py::array array, Sharing sharing) {
  const std::string name = py::str(array.dtype().attr("name"));
  for (const WiderRow& row : kWider)
    if (sharing == Sharing::kCopyIfNeeded && name == row.numpy)
      return from_numpy(array.attr("astype")(row.wider), sharing);
  for (const DTypeRow& row : kDTypes) {
    if (name != dtype_name(row.dtype)) continue;
    constexpr int wanted =
        py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const bool native = array.dtype().attr("isnative").cast<bool>();
    if ((array.flags() & wanted) != wanted || !native) {
      CHECK(sharing == Sharing::kCopyIfNeeded, ShapeError, kNotDense);
      array = array.attr("astype")(array.dtype().attr("newbyteorder")("="), py::arg("order") = "C");
    }
    const std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
    PyTensor tensor{view_with_shape(const_cast<void*>(array.data()), row.dtype, shape), nullptr};
    tensor.read_only = !array.writeable();
    // Dropped with the GIL held, whoever is last to let go.
    tensor.owner = std::shared_ptr<void>(new py::object(std::move(array)), [](void* object) {
      py::gil_scoped_acquire gil;
      delete static_cast<py::object*>(object);
    });
    return tensor;
  }
  throw DTypeError(
      str("tensor: ", kKnownDTypes, ", got ", name, "; convert with .astype('float32')"));
}

py::tuple dlpack_device(const PyTensor& tensor) {
  const DLDevice device = dlpack_device(tensor.view.device);
  return py::make_tuple(device.device_type, device.device_id);
}

PyTensor from_dlpack(const py::object& source, Sharing sharing) {
  CHECK(py::hasattr(source, "__dlpack__"), DTypeError,
        "from_dlpack: the argument must have a __dlpack__ method, got ",
        std::string(py::str(py::type::of(source).attr("__name__"))));
  const Imported imported = take_over(request_capsule(source));
  const DLTensor& array = *imported.array;
  const Device device = device_of(array.device);
  for (const DTypeRow& row : kDTypes) {
    if (std::memcmp(&row.dlpack, &array.dtype, sizeof(DLDataType)) != 0) continue;
    char* data = static_cast<char*>(array.data) + array.byte_offset;
    const std::vector<int64_t> shape(array.shape, array.shape + array.ndim);
    PyTensor tensor{view_with_shape(data, row.dtype, shape), imported.owner, imported.read_only};
    tensor.view.device = device;
    // An array of no elements may come without memory, which here would mean: not given.
    if (tensor.view.numel() == 0) return allocate(shape, row.dtype, device);
    if (is_dense(array)) return tensor;
    CHECK(sharing == Sharing::kCopyIfNeeded && device.type == DeviceType::kCpu, ShapeError,
          kNotDense);
    PyTensor dense = allocate(shape, row.dtype, {});
    copy_strided(dense.view.as<char>(), data, array, dtype_size(row.dtype), 0);
    return dense;
  }
  throw DTypeError(str("from_dlpack: ", kKnownDTypes, ", got DLPack type code ",
                       int{array.dtype.code}, " of ", int{array.dtype.bits}, " bits"));
}

py::array to_numpy(const PyTensor& tensor) {
  if (tensor.view.device.type != DeviceType::kCpu) return to_numpy(moved_to(tensor, {}));
  if (tensor.view.dtype == DType::kBFloat16) return to_numpy(converted(tensor, DType::kFloat32));
  auto* owner = new std::shared_ptr<void>(tensor.owner);
  py::capsule base(owner, [](void* held) { delete static_cast<std::shared_ptr<void>*>(held); });
  py::array array(py::dtype(dtype_name(tensor.view.dtype)), shape_of(tensor.view), tensor.view.data,
                  base);
  if (tensor.read_only) array.attr("flags").attr("writeable") = false;
  return array;
}

py::capsule to_dlpack(const PyTensor& tensor, const py::object& stream,
                      const py::object& max_version, const py::object& dl_device,
                      const py::object& copy) {
  const bool on_cpu = tensor.view.device.type == DeviceType::kCpu;
  if (on_cpu && !stream.is_none())
    throw py::buffer_error("__dlpack__: stream must be None on the CPU");
  const bool elsewhere = !dl_device.is_none() && !dl_device.equal(dlpack_device(tensor));
  if (elsewhere && !dl_device.equal(py::make_tuple(kDLCpu, 0)))
    throw py::buffer_error(str("__dlpack__: dl_device must be None, (1, 0), the CPU",
                               on_cpu ? "" : ", or where the tensor is"));
  if (elsewhere && !copy.is_none() && !copy.cast<bool>())
    throw py::buffer_error("__dlpack__: a tensor on a GPU reaches the CPU as a copy alone");
  const bool copied = elsewhere || (!copy.is_none() && copy.cast<bool>());
  PyTensor shared = tensor;
  if (copied) {
    shared = allocate(shape_of(tensor.view), tensor.view.dtype,
                      elsewhere ? Device{} : tensor.view.device);
    copy_tensor(tensor.view, shared.view);
  }
  if (!on_cpu) wait(queue_of(tensor.view.device));  // whatever the consumer's stream is
  if (!max_version.is_none() && max_version[py::int_(0)].cast<int>() >= 1) {
    auto* managed = export_array<DLManagedTensorVersioned>(shared);
    managed->version = {1, 0};
    managed->flags = (shared.read_only ? kReadOnly : 0) | (copied ? kCopied : 0);
    return py::capsule(managed, kVersioned, [](PyObject* capsule) {
      destroy_capsule<DLManagedTensorVersioned>(capsule, kVersioned);
    });
  }
  if (shared.read_only)
    throw py::buffer_error(
        "__dlpack__: this tensor is read-only, which needs a consumer of DLPack 1.0 "
        "(max_version=(1, 0)) or copy=True");
  return py::capsule(export_array<DLManagedTensor>(shared), kPlain,
                     [](PyObject* capsule) { destroy_capsule<DLManagedTensor>(capsule, kPlain); });
}

}  // namespace llmcore::bindings
