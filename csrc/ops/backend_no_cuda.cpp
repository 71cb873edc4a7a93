// The CUDA back end of a build that has none.
#include "ops/backend.h"

namespace llmcore {

const Kernels* cuda_kernels() {
  return nullptr;
}

const std::string& cuda_unavailable_reason() {
  static const std::string reason = "this build of llmcore has no CUDA back end; use device='cpu'";
  return reason;
}

const CudaInfo& cuda_info() {
  static const CudaInfo none;
  return none;
}

}  // namespace llmcore
