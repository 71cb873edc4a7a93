// Matrix products by cuBLASLt: which there are, each planned once. Its algorithm is the library's
// first choice, or the one that a file of this GPU, library and llmcore says was the fastest
// (core/choices.h): gpu::tune_products() writes it. Either is the same in every run.
#pragma once

#include <compare>
#include <cstdint>

#include "core/dtype.h"
#include "cuda/cublas.h"
#include "cuda/queue.h"

namespace llmcore::cuda {

// C [m, n] = op(A) op(B), row-major, `batch` of them: all that a plan depends on.
struct ProductKind {
  int64_t m = 0, n = 0, k = 0;  // none is 0
  bool transpose_a = false, transpose_b = false;
  DType operands = DType::kFloat32, result = DType::kFloat32;  // or bfloat16
  bool adds = false;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  int64_t batch = 1;
  bool one_a = false, one_b = false;   // for the whole batch
  int64_t a_stride = 0, c_stride = 0;  // from row to row; 0: dense
  int64_t alignment = 0;               // of everything, in bytes; multiply() finds it

  auto operator<=>(const ProductKind&) const = default;
};

struct ProductData {
  const void *a = nullptr, *b = nullptr;
  const void* added = nullptr;  // [m, n], if kind.adds; may be c
  void* c = nullptr;
  const void* bias = nullptr;  // [n], of C's type
  void* aux = nullptr;         // [m, n], of C's type: what GELU is, or was, applied to
};

// Sums are float, in an order that depends on the kind alone. False where the library has no such
// product; then nothing is done.
bool multiply(const Context& context, const ProductKind& kind, const ProductData& data);

}  // namespace llmcore::cuda
