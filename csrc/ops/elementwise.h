// What is done element by element or row by row and belongs to no other family.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

struct DropoutArgs {
  Dropout dropout;
  uint64_t offset = 0;  // element i of x is element offset + i of the mask
  Tensor x;             // any shape
  Tensor residual;      // same shape, added after; or empty
  Tensor y;             // same shape; may be x or residual. y = residual + x * keep / (1 - p)
};

struct AddArgs {
  Tensor a, b;  // any shape
  Tensor y;     // same shape; may be a or b
};

struct ScaleArgs {
  float factor = 1.0f;
  Tensor x;  // any shape
  Tensor y;  // may be x
};

struct FillArgs {
  float value = 0.0f;
  Tensor y;  // any shape
};

// Copies between float32 and bfloat16 or float16.
struct CastArgs {
  Tensor x, y;  // same shape
};

// Softmax over the last axis; a row of all -inf gives zeros, the logarithm too.
struct SoftmaxArgs {
  bool log = false;
  Tensor x;  // [N, C]
  Tensor y;  // [N, C]; may be x
};

struct SoftmaxBackwardArgs {
  bool log = false;
  Tensor dy;  // [N, C]
  Tensor y;   // [N, C], output of the forward pass
  Tensor dx;  // [N, C]; may be dy
};

// y[i] = x[index[i]], and its gradient: y[index[i]] += x[i] over zeros.
struct GatherRowsArgs {
  Tensor x;      // [N, C]
  Tensor index;  // [R] int32, each in [0, N)
  Tensor y;      // [R, C]
};
struct ScatterRowsArgs {
  Tensor x;      // [R, C]
  Tensor index;  // [R] int32, ascending, each in [0, N); repeated rows are added in order
  Tensor y;      // [N, C]
};

// y[n] = x[n] between matrices, or blocks of columns of wider ones.
struct CopyRowsArgs {
  int64_t rows = 0, cols = 0;
  DType dtype = DType::kFloat32;
  const void* x = nullptr;             // rows x_stride apart
  void* y = nullptr;                   // rows y_stride apart; does not overlap x
  int64_t x_stride = 0, y_stride = 0;  // in elements
};

struct TransposeArgs {
  Tensor x;  // [N, C]
  Tensor y;  // [C, N]
};

struct ElementwiseKernels {
  void (*dropout)(const Context&, const DropoutArgs&);
  void (*add)(const Context&, const AddArgs&);
  void (*scale)(const Context&, const ScaleArgs&);
  void (*fill)(const Context&, const FillArgs&);
  void (*cast)(const Context&, const CastArgs&);
  void (*softmax)(const Context&, const SoftmaxArgs&);
  void (*softmax_backward)(const Context&, const SoftmaxBackwardArgs&);
  void (*gather_rows)(const Context&, const GatherRowsArgs&);
  void (*scatter_rows)(const Context&, const ScatterRowsArgs&);
  void (*copy_rows)(const Context&, const CopyRowsArgs&);
  void (*transpose)(const Context&, const TransposeArgs&);
};

void dropout(const Context& context, const DropoutArgs& args);
void add(const Context& context, const AddArgs& args);
void scale(const Context& context, const ScaleArgs& args);
void fill(const Context& context, const FillArgs& args);
void cast(const Context& context, const CastArgs& args);
void softmax(const Context& context, const SoftmaxArgs& args);
void softmax_backward(const Context& context, const SoftmaxBackwardArgs& args);
void copy_rows(const Context& context, const CopyRowsArgs& args);
void transpose(const Context& context, const TransposeArgs& args);

// Both throw IndexError for a row outside [0, N).
void gather_rows(const Context& context, const GatherRowsArgs& args);
void scatter_rows(const Context& context, const ScatterRowsArgs& args);

}  // namespace llmcore
