// Argument checks of operations that take tensors of any shape.
#pragma once

#include "core/error.h"

namespace llmcore {

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
