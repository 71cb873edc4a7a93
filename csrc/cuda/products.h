// Matrix products by cuBLASLt: which there are, each planned once, and a file that remembers which
// of the library's algorithms are the fastest on a GPU.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

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

// From now on a new plan takes the algorithm that `file` names for its product. Where it names
// none, the library's best few are timed on random data, and the file is told. An empty name, as at
// first: the library's own choice.
void tune_products(const std::string& file);

// A line of such a file: a product on a GPU under a version of the library, a tab, and which of the
// best few it was.
std::string product_name(const std::string& gpu, size_t version, const ProductKind& kind);
void remember_choice(const std::string& file, const std::string& product, int choice);
// -1 where the file, or a line of it, does not exist.
int remembered_choice(const std::string& file, const std::string& product);

}  // namespace llmcore::cuda
