// Tables of families that are still to be written for CUDA.
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/packed.h"

namespace llmcore::cuda {

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {};
extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
const MatmulBFloat16Kernels matmul_bfloat16_kernels = {};
extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {};
extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {};

}  // namespace llmcore::cuda
