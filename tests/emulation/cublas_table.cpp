// What csrc/core/cublas_cuda.cu does, where cuBLASLt's functions are emulated and linked.
#include "cuda/cublas.h"

namespace llmcore::cuda {

const Cublas& cublas() {
  static const Cublas table{
#define LLMCORE_FUNCTION(name) .name = &cublasLt##name,
      LLMCORE_CUBLAS_FUNCTIONS(LLMCORE_FUNCTION)
#undef LLMCORE_FUNCTION
          .path = "emulated",
      .reason = {}};
  return table;
}

}  // namespace llmcore::cuda
