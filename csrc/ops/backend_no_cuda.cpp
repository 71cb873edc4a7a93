// The CUDA back end of a build that has none.
#include "ops/backend.h"

namespace llmcore {

const Kernels* cuda_kernels() {
  return nullptr;
}

std::string cuda_unavailable_reason() {
  return "this build of llmcore has no CUDA back end; use device='cpu'";
}

CudaInfo cuda_info() {
  return {};
}

}  // namespace llmcore
