// Tables of families that are still to be written for CUDA.
#include "ops/attention.h"

namespace llmcore::cuda {

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {};

}  // namespace llmcore::cuda
