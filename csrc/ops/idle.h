// Kernels that do nothing: a pass with them takes from the arena what a real one takes.
#pragma once

#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/kernels.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/optimizer.h"
#include "ops/rope.h"

namespace llmcore {

// What a training step calls. Of the real kernels, those that tell how much scratch they need stay.
struct IdleKernels {
  explicit IdleKernels(const Kernels& real);
  IdleKernels(const IdleKernels&) = delete;

  MatmulKernels matmul;
  MatmulBFloat16Kernels matmul_bfloat16;
  AttentionKernels attention;
  NormKernels norm;
  ActivationKernels activation;
  EmbeddingKernels embedding;
  RopeKernels rope;
  CrossEntropyKernels cross_entropy;
  ElementwiseKernels elementwise;
  OptimizerKernels optimizer;
  Kernels table;
};

}  // namespace llmcore
