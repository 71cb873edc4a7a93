// cuBLASLt, opened when first needed (core/libraries.h): nothing of it is linked, so that llmcore
// imports, and runs on the CPU, without it. Call `cublas().Matmul(…)` for cublasLtMatmul(…).
#pragma once

#include <cublasLt.h>

#include <string>

#include "core/error.h"

// What is called of it: each name follows cublasLt.
// clang-format off
#define LLMCORE_CUBLAS_FUNCTIONS(F)                                                    \
  F(GetVersion) F(GetStatusString) F(Create) F(Destroy)                                \
  F(MatmulDescCreate) F(MatmulDescSetAttribute) F(MatmulDescDestroy)                   \
  F(MatrixLayoutCreate) F(MatrixLayoutSetAttribute) F(MatrixLayoutDestroy)             \
  F(MatmulPreferenceCreate) F(MatmulPreferenceSetAttribute) F(MatmulPreferenceDestroy) \
  F(MatmulAlgoGetHeuristic) F(Matmul)
// clang-format on

namespace llmcore::cuda {

struct Cublas {
#define LLMCORE_FUNCTION(name) decltype(&cublasLt##name) name = nullptr;
  LLMCORE_CUBLAS_FUNCTIONS(LLMCORE_FUNCTION)
#undef LLMCORE_FUNCTION
  std::string path;    // of the library that was opened
  std::string reason;  // why none can be used and what helps; where it is empty, all is there
};

// Opens the library at the first call, from any thread.
const Cublas& cublas();

// Throws DeviceError, saying what failed, unless `status` is success.
inline void check(cublasStatus_t status, const char* what) {
  CHECK(status == CUBLAS_STATUS_SUCCESS, DeviceError, what,
        " failed: ", cublas().GetStatusString(status));
}

}  // namespace llmcore::cuda
