// Argument checks of operations that take tensors of any shape.
#pragma once

#include <vector>

#include "core/context.h"
#include "core/error.h"

namespace llmcore {

// The type that `x` has as an activation: float32, on a GPU also bfloat16.
inline DType activation_dtype(const char* op, const char* name, const Context& context,
                              const Tensor& x) {
  const bool narrow = context.device.type != DeviceType::kCpu && x.dtype == DType::kBFloat16;
  CHECK(x.dtype == DType::kFloat32 || narrow, DTypeError, op, ": ", name, " must be float32",
        context.device.type == DeviceType::kCpu ? "" : " or bfloat16", ", got ",
        dtype_name(x.dtype));
  return x.dtype;
}

// Rows of `matrix` that are `stride` elements apart, or, where it is 0, side by side.
inline void check_stride(const char* op, const char* name, const Context& context,
                         const Tensor& matrix, int64_t stride) {
  CHECK(stride == 0 || (context.device.type != DeviceType::kCpu && stride >= matrix.cols()),
        ShapeError, op, ": rows of ", name, " ", shape_string(matrix), " cannot be ", stride,
        " elements apart", context.device.type == DeviceType::kCpu ? " on the CPU" : "");
}

// The elements of an int32 tensor as the CPU reads them: in place, or copied from a GPU where there
// is no mirror, which waits for what it is doing.
class HostInts {
 public:
  HostInts(const Context& context, const Tensor& tensor);
  int32_t operator[](int64_t i) const { return data_[i]; }

 private:
  std::vector<int32_t> copy_;
  const int32_t* data_;
};

// `tensor` has the shape of the argument `like_name`, and `dtype`.
inline void check_like(const char* op, const char* name, const Tensor& tensor,
                       const char* like_name, const Tensor& like, DType dtype = DType::kFloat32) {
  bool same = tensor.rank == like.rank;
  for (int axis = 0; same && axis < like.rank; ++axis)
    same = tensor.shape[axis] == like.shape[axis];
  CHECK(same, ShapeError, op, ": ", name, " must have the shape of ", like_name, ", ",
        shape_string(like), ", got ", shape_string(tensor));
  CHECK(tensor.dtype == dtype, DTypeError, op, ": ", name, " must be ", dtype_name(dtype), ", got ",
        dtype_name(tensor.dtype));
  CHECK(tensor.data != nullptr || tensor.numel() == 0, ShapeError, op, ": ", name, " is missing");
}

}  // namespace llmcore
