// One instruction set's kernel table: compiled once per instruction set, like the kernels it names.
#include "ops/kernels.h"
#include "simd/dot.h"

#define LLMCORE_STRINGIFY(x) #x
#define LLMCORE_NAME(x) LLMCORE_STRINGIFY(x)

namespace llmcore::LLMCORE_ISA {

extern const MatmulKernels matmul_kernels;
extern const AttentionKernels attention_kernels;
extern const NormKernels norm_kernels;
extern const ActivationKernels activation_kernels;
extern const EmbeddingKernels embedding_kernels;
extern const RopeKernels rope_kernels;
extern const CrossEntropyKernels cross_entropy_kernels;
extern const ElementwiseKernels elementwise_kernels;
extern const OptimizerKernels optimizer_kernels;
extern const CeilingKernels ceiling_kernels;
extern const LoadingKernels loading_kernels;
extern const PackedKernels packed_kernels;
extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;

extern const Kernels kernels;
const Kernels kernels = {
    .name = LLMCORE_NAME(LLMCORE_ISA),
    .has_dot = kDotParts == 1,
    .matmul = &matmul_kernels,
    .attention = &attention_kernels,
    .norm = &norm_kernels,
    .activation = &activation_kernels,
    .embedding = &embedding_kernels,
    .rope = &rope_kernels,
    .cross_entropy = &cross_entropy_kernels,
    .elementwise = &elementwise_kernels,
    .optimizer = &optimizer_kernels,
    .ceiling = &ceiling_kernels,
    .loading = &loading_kernels,
    .packed = &packed_kernels,
    .matmul_bfloat16 = &matmul_bfloat16_kernels,
    .sampling = nullptr,
};

}  // namespace llmcore::LLMCORE_ISA
