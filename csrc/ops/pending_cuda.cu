// Tables of families that are still to be written for CUDA.
#include "ops/attention.h"
#include "ops/packed.h"

namespace llmcore::cuda {

extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {};
extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {};

}  // namespace llmcore::cuda
