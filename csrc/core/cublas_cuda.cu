// Fills the table of cuBLASLt's functions.
#include "core/error.h"
#include "core/libraries.h"
#include "cuda/cublas.h"

namespace llmcore::cuda {
namespace {

Cublas opened() {
  Library library = open_library("libcublasLt.so.13");
  Cublas table;
#define LLMCORE_FUNCTION(name) \
  table.name = reinterpret_cast<decltype(table.name)>(library.function("cublasLt" #name));
  LLMCORE_CUBLAS_FUNCTIONS(LLMCORE_FUNCTION)
#undef LLMCORE_FUNCTION
  table.path = library.path;
  if (!library.reason.empty())
    table.reason = str(library.reason,
                       "; pip install \"nvidia-cublas>=13,<14\" brings it, or use device='cpu'");
  return table;
}

}  // namespace

const Cublas& cublas() {
  static const Cublas table = opened();
  return table;
}

}  // namespace llmcore::cuda
