// What a machine can do at most: the ceilings that every share of peak or of bandwidth refers to.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

struct CeilingKernels {
  // Multiply-adds of registers with registers on the calling thread, in operations per second, two
  // for each. The best of all rounds in `seconds`, so that other work on the core does not count.
  // Of bfloat16 and int8: by the instructions that packed weights are multiplied with.
  double (*multiply_adds)(double seconds);
  double (*bfloat16_multiply_adds)(double seconds);
  double (*int8_multiply_adds)(double seconds);
  // Bytes per second at which the calling thread reads x [count] from end to end, again and again;
  // the best of all passes in `seconds`, at least one.
  double (*reads)(const float* x, int64_t count, double seconds);
};

// The sum over all threads, measured on all of them at once. Throws DTypeError unless `dtype` is
// float32, bfloat16 or int8.
double measure_peak(const Kernels& kernels, DType dtype, double seconds);

// The same for reads of x, of which each thread has a part of its own. A large x is read from
// memory, a small one from a cache. Throws ShapeError where x has less than an element a thread.
double measure_read(const Context& context, const Tensor& x, double seconds);

}  // namespace llmcore
