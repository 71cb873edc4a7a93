// The table of kernels a back end fills in, and the conventions every operation keeps.
//
// An operation is one header (contract), `<family>.cpp` (checks), `<family>_cpu.cpp` and
// `<family>_cuda.cu` (kernels), side by side. Call norm_forward(context, args): it checks `args`,
// then calls the back end's kernel with the same struct.
//
// Conventions, said once:
//   * Tensors are dense, row-major, on the context's device; shapes are in the struct's comments.
//   * Parameter gradients accumulate into their tensor. Activation gradients overwrite theirs,
//     unless the struct has `accumulate` and it is set.
//   * Output may alias input only where the comment says so.
//   * An empty tensor means not given, or not wanted.
//   * Sums are taken in fp32, in an order that depends on sizes alone: never on the number of
//   threads,
//     nor on which other rows are in the batch.
//   * Kernels do not allocate. Scratch comes from the context's arena, in the checking layer.
#pragma once

namespace llmcore {

struct MatmulKernels;
struct AttentionKernels;
struct NormKernels;
struct ActivationKernels;
struct EmbeddingKernels;
struct RopeKernels;
struct CrossEntropyKernels;
struct ElementwiseKernels;
struct OptimizerKernels;
struct CeilingKernels;
struct LoadingKernels;
struct PackedKernels;
struct MatmulBFloat16Kernels;
struct SamplingKernels;

struct Kernels {
  const char* name;  // "generic", "avx2", "avx512", "avx512_bf16", "neon"
  bool has_dot;      // instructions of their own for dot products of bfloat16 and int8
  const MatmulKernels* matmul;
  const AttentionKernels* attention;
  const NormKernels* norm;
  const ActivationKernels* activation;
  const EmbeddingKernels* embedding;
  const RopeKernels* rope;
  const CrossEntropyKernels* cross_entropy;
  const ElementwiseKernels* elementwise;
  const OptimizerKernels* optimizer;
  const CeilingKernels* ceiling;
  const LoadingKernels* loading;
  const PackedKernels* packed;
  const MatmulBFloat16Kernels* matmul_bfloat16;
  const SamplingKernels* sampling;  // a GPU's; null on the CPU, where generate/ chooses
};

// The table for this machine's processor, chosen once; LLMCORE_CPU_ISA overrides. Throws
// ConfigError for a table this processor cannot run, listing those it can.
const Kernels& cpu_kernels();

// Names of the CPU tables this build has and this processor can run, best last.
struct KernelNames {
  const char* names[5];
  int count;
};
KernelNames available_cpu_kernels();

}  // namespace llmcore
