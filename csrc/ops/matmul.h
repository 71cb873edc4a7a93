// Matrix products: C = op(A) op(B), with everything a Transformer does to the result fused in.
//
// The three forms of a linear layer y = x W^T, W [out, in], are
//   y  = x W^T      transpose_b                       (bias, activation, residual fused)
//   dx = dy W       neither                           (derivative of the activation before it
//   fused) dW = dy^T x     transpose_a, accumulate
//
// Every element of C is the sum over k in one fixed order: K is cut into chains of kMatmulChain,
// each of multiply-adds in ascending k from zero; the chains of a block of kMatmulBlock are added
// up in ascending order, then the blocks, to the old C if it accumulates. The order depends on K
// alone: not on M, N, the form, the tile an element falls into, or the number of threads.
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "ops/activation.h"
#include "ops/norm.h"

namespace llmcore {

inline constexpr int64_t kMatmulChain = 256;
inline constexpr int64_t kMatmulBlock = 3 * kMatmulChain;

// On a GPU a, b and c may each be float32 or bfloat16; what is bias is float32, all else as c.
struct MatmulArgs {
  Tensor a;  // [M, K], or [K, M] if transpose_a
  Tensor b;  // [K, N], or [N, K] if transpose_b
  Tensor c;  // [M, N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // C += instead of C =; excludes what follows
  // From one row of a, of c to the next; 0: dense. Others are for a GPU, and for C without anything
  // but a bias. What lies between rows is memory of the tensor and means nothing.
  int64_t a_stride = 0, c_stride = 0;
  RowNorm norm;  // of the rows of a, which are dense and not transposed, before all else
  // Then, in this order:
  Tensor bias;                                // [N]: C += bias
  Tensor pre_activation;                      // [M, N] out: C is stored here before the activation
  Activation activation = Activation::kNone;  // C = activation(C)
  Tensor gate_input;                          // [M, N]: C *= gate_activation'(gate_input)
  Activation gate_activation = Activation::kNone;
  // [M, N] out: dropout(gate_activation(gate_input)), which comes at little more; may be gate_input
  Tensor gate_output;
  Dropout dropout;  // C = dropout(C), element (m, n) at m * N + n
  Tensor residual;  // [M, N]: C += residual; may be c
  // Provided by the checking layer:
  int workers = 1;  // threads that may take part: 1 keeps to the calling one
  Tensor scratch;
};

struct ColumnSumArgs {
  Tensor x;              // [N, C]
  int64_t x_stride = 0;  // as in MatmulArgs
  Tensor out;            // [C] accumulates: the gradient of a bias
  Tensor partial;        // scratch, provided by the checking layer
};

struct MatmulKernels {
  int64_t (*scratch_bytes)(const MatmulArgs&);
  void (*matmul)(const Context&, const MatmulArgs&);
  void (*column_sum)(const Context&, const ColumnSumArgs&);
  // All products of a batch at once; null: the checking layer takes them one by one.
  void (*batched)(const Context&, const MatmulArgs&);
  // Whether a product normalises rows of a itself; null: none does, and the checking layer does.
  bool (*normalises)(const MatmulArgs&);
};

// The same products of operands rounded to bfloat16, sums in float. Their order too depends on K
// alone.
struct MatmulBFloat16Kernels {
  int64_t (*scratch_bytes)(const MatmulArgs&);
  void (*matmul)(const Context&, const MatmulArgs&);
};

// Rounds a and b to bfloat16 where the context says so.
void matmul(const Context& context, const MatmulArgs& args);
void column_sum(const Context& context, const ColumnSumArgs& args);

// C[i] = op(A[i]) op(B[i]) for tensors of rank 3 [batch, rows, cols]; a batch of 1 is broadcast.
void batched_matmul(const Context& context, const MatmulArgs& args);

}  // namespace llmcore
