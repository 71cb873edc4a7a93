// Loops that do one thing as fast as the processor can, on one thread.
#include <time.h>

#include "ops/ceiling.h"
#include "ops/matmul_tile.h"

namespace llmcore::LLMCORE_ISA {
namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// As many sums as a matrix product has, so that none waits for itself.
double multiply_adds(double seconds) {
  constexpr int kChains = kStripRows * kTileVectors;
  constexpr int64_t kRounds = 10000;
  volatile float half = 0.5f, sink;
  const Vec factor = broadcast(half);
  Vec sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = broadcast(half + static_cast<float>(i));
  double best = 0.0;
  const double end = now() + seconds;
  do {
    const double start = now();
    for (int64_t round = 0; round < kRounds; ++round)
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], factor, factor);
    const double rate = 2.0 * kLanes * kChains * kRounds / (now() - start);
    best = rate > best ? rate : best;
  } while (now() < end);
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  sink = reduce_add(sum[0]);
  (void)sink;
  return best;
}

double reads(const float* x, int64_t count, double seconds) {
  constexpr int kSums = 8;
  volatile float sink;
  double best = 0.0;
  const double end = now() + seconds;
  do {
    Vec sum[kSums] = {};
    const double start = now();
    int64_t i = 0;
    for (; i + kSums * kLanes <= count; i += kSums * kLanes)
#pragma GCC unroll 8
      for (int s = 0; s < kSums; ++s) sum[s] += load(x + i + s * kLanes);
    for (; i < count; i += kLanes) sum[0] += load_up_to(x + i, count - i);
#pragma GCC unroll 8
    for (int s = 1; s < kSums; ++s) sum[0] += sum[s];
    sink = reduce_add(sum[0]);
    const double rate = static_cast<double>(count) * sizeof(float) / (now() - start);
    best = rate > best ? rate : best;
  } while (now() < end);
  (void)sink;
  return best;
}

}  // namespace

extern const CeilingKernels ceiling_kernels;
const CeilingKernels ceiling_kernels = {.multiply_adds = multiply_adds, .reads = reads};

}  // namespace llmcore::LLMCORE_ISA
