// Loops that do one thing as fast as the processor can, on one thread.
#include <time.h>

#include "ops/ceiling.h"
#include "ops/packed_tile.h"

namespace llmcore::LLMCORE_ISA {
namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Many rounds of sum = step(sum, operand), as many sums as a matrix product has, so that none waits
// for itself; their total. Each round reads its operand, lest products be computed beforehand.
template <class Sum, class Operand, class Step>
__attribute__((noinline)) Sum run_rounds(int64_t rounds, const Operand& operand, Step step) {
  constexpr int kChains = kStripRows * kTileVectors;
  Sum sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i)  // no two alike, or one would do for all
    sum[i] = static_cast<decltype(sum[0][0] + 0)>(i) - Sum{};
  for (int64_t round = 0; round < rounds; ++round) {
    const auto value = operand();
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sum[i] = step(sum[i], value);
  }
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] += sum[i];
  return sum[0];
}

// The best rate of all rounds in `seconds`; each step does `operations`.
template <class Sum, class Operand, class Step>
double best_rate(double seconds, double operations, const Operand& operand, Step step) {
  constexpr int64_t kRounds = 10000;
  double best = 0.0;
  const double end = now() + seconds;
  do {
    const double start = now();
    volatile Sum sink = run_rounds<Sum>(kRounds, operand, step);
    (void)sink;
    const double rate = operations * kStripRows * kTileVectors * kRounds / (now() - start);
    best = rate > best ? rate : best;
  } while (now() < end);
  return best;
}

double multiply_adds(double seconds) {
  volatile Vec half = broadcast(0.5f);
  return best_rate<Vec>(
      seconds, 2.0 * kLanes, [&]() -> Vec { return half; },
      [](Vec sum, Vec x) { return fma(sum, x, x); });
}

// The rate of Format::dot, of the formats of packed weights, on words of some ones a lane.
template <class Format>
double dot_rate(double seconds, double operations, uint32_t ones) {
  const DotLanes lanes = Format::lanes(ones - VecU{});
  volatile VecU parts[kDotParts];
  for (int i = 0; i < kDotParts; ++i) parts[i] = lanes.part[i];
  return best_rate<typename Format::Sum>(
      seconds, operations,
      [&] {
        DotLanes row;
#pragma GCC unroll 2
        for (int i = 0; i < kDotParts; ++i) row.part[i] = parts[i];
        return row;
      },
      [lanes](auto sum, const DotLanes& row) { return Format::dot(sum, lanes, row); });
}

double bfloat16_multiply_adds(double seconds) {
  return dot_rate<BFloat16Format>(seconds, 4.0 * kLanes, 0x3f803f80u);
}

double int8_multiply_adds(double seconds) {
  return dot_rate<Int8Format>(seconds, 8.0 * kLanes, 0x01010101u);
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
const CeilingKernels ceiling_kernels = {.multiply_adds = multiply_adds,
                                        .bfloat16_multiply_adds = bfloat16_multiply_adds,
                                        .int8_multiply_adds = int8_multiply_adds,
                                        .reads = reads};

}  // namespace llmcore::LLMCORE_ISA
