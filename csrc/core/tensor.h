// Tensor: a trivially copyable view of a dense row-major array. It owns nothing.
//
// Being plain data, it crosses into the per-ISA and CUDA objects without dragging templates along.
// An empty tensor (no data) means "not given" or "not wanted".
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/dtype.h"

namespace llmcore {

inline constexpr int kMaxRank = 8;

struct Tensor {
  void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  int32_t rank = 0;
  DType dtype = DType::kFloat32;
  Device device = {};
  void* mirror = nullptr;  // the same elements where the CPU sees them, if `data` is on a GPU

  LLMCORE_INLINE explicit operator bool() const { return data != nullptr; }

  // Axis sizes; negative axes count from the end.
  LLMCORE_INLINE int64_t dim(int axis) const { return shape[axis < 0 ? axis + rank : axis]; }

  LLMCORE_INLINE int64_t numel() const {
    int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
    return count;
  }

  // The matrix a tensor is when all its leading axes are rows: [rows, cols].
  LLMCORE_INLINE int64_t cols() const { return rank == 0 ? 1 : shape[rank - 1]; }
  LLMCORE_INLINE int64_t rows() const {
    int64_t count = 1;
    for (int axis = 0; axis + 1 < rank; ++axis) count *= shape[axis];
    return count;
  }

  LLMCORE_INLINE int64_t nbytes() const { return numel() * dtype_size(dtype); }

  template <class T>
  LLMCORE_INLINE T* as() const {
    return static_cast<T*>(data);
  }
  LLMCORE_INLINE float* f32() const { return as<float>(); }

  // The elements as the CPU reads them; null where they are on a GPU and have no mirror.
  template <class T>
  T* host() const {
    return static_cast<T*>(device.type == DeviceType::kCpu ? data : mirror);
  }
};

// A view of `data` with the given shape: view(p, DType::kFloat32, n, c).
template <class... Sizes>
LLMCORE_INLINE Tensor tensor_view(void* data, DType dtype, Sizes... sizes) {
  static_assert(sizeof...(sizes) <= kMaxRank);
  return Tensor{.data = data,
                .shape = {static_cast<int64_t>(sizes)...},
                .rank = static_cast<int32_t>(sizeof...(sizes)),
                .dtype = dtype};
}

template <class... Sizes>
LLMCORE_INLINE Tensor f32_view(void* data, Sizes... sizes) {
  return tensor_view(data, DType::kFloat32, sizes...);
}

// The same elements under another shape.
template <class... Sizes>
LLMCORE_INLINE Tensor reshaped(const Tensor& tensor, Sizes... sizes) {
  Tensor view = tensor_view(tensor.data, tensor.dtype, sizes...);
  view.device = tensor.device;
  view.mirror = tensor.mirror;
  return view;
}

// The elements from number `begin` on, under another shape.
template <class... Sizes>
LLMCORE_INLINE Tensor view_from(const Tensor& tensor, int64_t begin, Sizes... sizes) {
  Tensor view = reshaped(tensor, sizes...);
  if (view.data != nullptr) view.data = tensor.as<char>() + begin * dtype_size(tensor.dtype);
  view.mirror = nullptr;
  return view;
}

// Rows [begin, begin + count) of a matrix.
LLMCORE_INLINE Tensor row_slice(const Tensor& matrix, int64_t begin, int64_t count) {
  Tensor view = matrix;
  const int64_t skipped = matrix.data == nullptr ? 0
                                                 : begin * (matrix.numel() / matrix.shape[0]) *
                                                       dtype_size(matrix.dtype);
  if (matrix.data != nullptr) view.data = matrix.as<char>() + skipped;
  if (matrix.mirror != nullptr) view.mirror = static_cast<char*>(matrix.mirror) + skipped;
  view.shape[0] = count;
  return view;
}

}  // namespace llmcore
