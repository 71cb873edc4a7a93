// One instruction set's kernel table: compiled once per instruction set, like the kernels it names.
#include "ops/kernels.h"

#define LLMCORE_STRINGIFY(x) #x
#define LLMCORE_NAME(x) LLMCORE_STRINGIFY(x)

namespace llmcore::LLMCORE_ISA {

extern const MatmulKernels matmul_kernels __attribute__((weak));
extern const AttentionKernels attention_kernels __attribute__((weak));
extern const NormKernels norm_kernels __attribute__((weak));
extern const ActivationKernels activation_kernels __attribute__((weak));
extern const EmbeddingKernels embedding_kernels __attribute__((weak));
extern const RopeKernels rope_kernels __attribute__((weak));
extern const CrossEntropyKernels cross_entropy_kernels __attribute__((weak));
extern const ElementwiseKernels elementwise_kernels __attribute__((weak));
extern const OptimizerKernels optimizer_kernels __attribute__((weak));

extern const Kernels kernels;
const Kernels kernels = {
    .name = LLMCORE_NAME(LLMCORE_ISA),
    .matmul = &matmul_kernels,
    .attention = &attention_kernels,
    .norm = &norm_kernels,
    .activation = &activation_kernels,
    .embedding = &embedding_kernels,
    .rope = &rope_kernels,
    .cross_entropy = &cross_entropy_kernels,
    .elementwise = &elementwise_kernels,
    .optimizer = &optimizer_kernels,
};

}  // namespace llmcore::LLMCORE_ISA
