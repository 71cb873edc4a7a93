// The product behind cublasLtMatmul: d = epilogue(alpha a b + beta c).
#pragma once

#include "cublasLt.h"

struct cublasLtMatrixLayoutOpaque_t {
  int32_t type, order = CUBLASLT_ORDER_COL;
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch_count = 1;
  int64_t batch_stride = 0;
};

struct cublasLtMatmulDescOpaque_t {
  int32_t compute, scale;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  int32_t bias_type = -1;  // that of d
  int64_t bias_stride = 0;
  void* aux = nullptr;
  int32_t aux_type = -1;
  int64_t aux_ld = 0, aux_stride = 0;
  int32_t sm_count = 0;
};

namespace emulation {

using Layout = cublasLtMatrixLayoutOpaque_t;

// An epilogue is a set of these.
enum Step : uint32_t {
  kRelu = 2,
  kBias = 4,
  kBiasGradient = 16,
  kGelu = 32,
  kGeluGradient = 64,
  kAux = 128,  // what GELU was applied to
  kSumA = 256,
  kSumB = 512
};

struct Product {
  cublasLtMatmulDescOpaque_t desc;
  Layout a_layout, b_layout, c_layout, d_layout;
  const void *a, *b, *c;
  void* d;
  const void *alpha, *beta;  // on the device, or null where the bits are these:
  uint32_t alpha_bits, beta_bits;

  bool has(uint32_t step) const { return (desc.epilogue & step) != 0; }
};

size_t element_bytes(int32_t type);

void multiply(const Product& product);

}  // namespace emulation
