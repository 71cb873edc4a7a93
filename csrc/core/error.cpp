// The argument checks every operation shares.
#include "core/error.h"

namespace llmcore {
namespace {

template <class Sizes>
std::string bracketed(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

}  // namespace

std::string shape_string(const Tensor& tensor) {
  struct Span {
    const int64_t *first, *last;
    const int64_t* begin() const { return first; }
    const int64_t* end() const { return last; }
  };
  return bracketed(Span{tensor.shape, tensor.shape + tensor.rank});
}

void check_tensor(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                  std::initializer_list<int64_t> dims, DType dtype) {
  bool same = tensor.rank == static_cast<int32_t>(dims.size());
  int axis = 0;
  for (int64_t size : dims) {
    if (!same) break;
    same = tensor.shape[axis++] == size;
  }
  CHECK(same, ShapeError, op, ": ", name, " must have shape ", symbols, " = ", bracketed(dims),
        ", got ", shape_string(tensor));
  CHECK(tensor.dtype == dtype, DTypeError, op, ": ", name, " must be ", dtype_name(dtype), ", got ",
        dtype_name(tensor.dtype));
  CHECK(tensor.data != nullptr || tensor.numel() == 0, ShapeError, op, ": ", name, " is missing");
}

void check_optional(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                    std::initializer_list<int64_t> dims, DType dtype) {
  if (tensor) check_tensor(op, name, tensor, symbols, dims, dtype);
}

}  // namespace llmcore
