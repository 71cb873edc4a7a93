// The table of kernels that do nothing.
#include "ops/idle.h"

namespace llmcore {
namespace {

// Becomes any kernel.
struct Nothing {
  template <class... Args>
  using Kernel = void (*)(Args...);
  template <class... Args>
  operator Kernel<Args...>() const {
    return [](Args...) {};
  }
};
constexpr Nothing kNothing;

}  // namespace

IdleKernels::IdleKernels(const Kernels& real)
    : matmul{real.matmul->scratch_bytes, kNothing, kNothing, kNothing},
      matmul_bfloat16{real.matmul_bfloat16->scratch_bytes, kNothing},
      attention{real.attention->forward_scratch, real.attention->backward_scratch, kNothing,
                kNothing, kNothing},
      norm{kNothing, kNothing},
      activation{kNothing, kNothing, kNothing, kNothing},
      embedding{real.embedding->backward_scratch, kNothing, kNothing},
      rope{kNothing},
      cross_entropy{kNothing},
      elementwise{kNothing, kNothing, kNothing, kNothing, kNothing, kNothing,
                  kNothing, kNothing, kNothing, kNothing, kNothing},
      optimizer{kNothing, kNothing, kNothing, kNothing, kNothing},
      table(real) {
  if (real.matmul->batched == nullptr) matmul.batched = nullptr;  // which is done one by one
  table.matmul = &matmul;
  table.matmul_bfloat16 = &matmul_bfloat16;
  table.attention = &attention;
  table.norm = &norm;
  table.activation = &activation;
  table.embedding = &embedding;
  table.rope = &rope;
  table.cross_entropy = &cross_entropy;
  table.elementwise = &elementwise;
  table.optimizer = &optimizer;
}

}  // namespace llmcore
