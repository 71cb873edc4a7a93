// Tensors from and to the arrays of other libraries.
#pragma once

#include "bindings/py_tensor.h"

namespace llmcore::bindings {

std::vector<int64_t> shape_of(const Tensor& tensor);

// A view of `data`; throws for a shape that no memory could hold.
Tensor view_with_shape(void* data, DType dtype, const std::vector<int64_t>& shape);

// What to do with an array whose memory cannot be taken as it is: copy it, or refuse.
enum class Sharing { kCopyIfNeeded, kRequired };

PyTensor from_numpy(py::array array, Sharing sharing);
PyTensor from_dlpack(const py::object& source, Sharing sharing);

// The same tensor on a device: itself where it is there.
PyTensor moved_to(const PyTensor& tensor, Device device);

// Shares memory; of bfloat16, a float32 copy; of a GPU's memory, a copy.
py::array to_numpy(const PyTensor& tensor);
py::tuple dlpack_device(const PyTensor& tensor);
py::capsule to_dlpack(const PyTensor& tensor, const py::object& stream,
                      const py::object& max_version, const py::object& dl_device,
                      const py::object& copy);

// The same elements as another type.
PyTensor converted(const PyTensor& tensor, DType dtype);

}  // namespace llmcore::bindings
