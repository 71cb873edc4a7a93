// Tables of families that are still to be written for CUDA.
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/optimizer.h"
#include "ops/packed.h"
#include "ops/rope.h"

namespace llmcore::cuda {

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {};
extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
const MatmulBFloat16Kernels matmul_bfloat16_kernels = {};
extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {};
extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {};
extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {};
extern const RopeKernels rope_kernels;
const RopeKernels rope_kernels = {};
extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {};
extern const ElementwiseKernels elementwise_kernels;
const ElementwiseKernels elementwise_kernels = {};
extern const OptimizerKernels optimizer_kernels;
const OptimizerKernels optimizer_kernels = {};

}  // namespace llmcore::cuda
