// Emulates csrc/cuda/ptx.h, which says what the functions do and how fragments are laid out.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace llmcore::cuda {

inline uint32_t pack_bfloat16(float low, float high) {
  const auto bits = [](float x) -> uint32_t {
    return std::isnan(x) ? 0x7fff : to_bfloat16(x).bits;
  };
  return bits(low) | bits(high) << 16;
}

inline float fast_exp2(float x) {
  const float y = std::exp2(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

namespace emulated {

inline constexpr unsigned kAll = 0xffffffffu;

// One lane's part of a and b, widened: kPack values of A's and then B's registers.
template <class T, int kPack>
struct Fragments {
  T a[4][kPack], b[2][kPack];
};

// Every lane widens its own part once, and then gathers the rows and columns that it needs.
template <class Sum, class T, int kPack>
void multiply(Sum (&d)[4], const Fragments<T, kPack>& mine) {
  const auto all = emulation::warp_exchange(emulation::Together::kMultiply, kAll, mine);
  const int g = emulation::lane() / 4, t = emulation::lane() % 4;
  for (int half = 0; half < 2; ++half)  // of k
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int i = 0; i < kPack; ++i)
        for (int out = 0; out < 4; ++out) {
          const T a = all[g * 4 + quarter].a[out / 2 + 2 * half][i];
          const T b = all[(2 * t + out % 2) * 4 + quarter].b[half][i];
          d[out] += static_cast<Sum>(a) * static_cast<Sum>(b);
        }
}

template <int kRegisters>
void load_matrices(uint32_t (&r)[kRegisters], const void* shared_row, bool transposed) {
  struct Row {
    uint16_t elements[8];
  } mine{};
  if (emulation::lane() < 8 * kRegisters) {
    if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0)
      emulation::fault("names a row for ldmatrix that is not 16-byte aligned");
    std::memcpy(&mine, shared_row, sizeof mine);
  }
  const auto rows = emulation::warp_exchange(emulation::Together::kLoadMatrix, kAll, mine);
  const int g = emulation::lane() / 4, t = emulation::lane() % 4;
  for (int m = 0; m < kRegisters; ++m) {
    const auto element = [&](int i) -> uint32_t {
      return transposed ? rows[8 * m + 2 * t + i].elements[g] : rows[8 * m + g].elements[2 * t + i];
    };
    r[m] = element(0) | element(1) << 16;
  }
}

}  // namespace emulated

inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Fragments<float, 2> mine;
  const auto widen = [](float(&to)[2], uint32_t from) {
    to[0] = to_float(BFloat16{static_cast<uint16_t>(from)});
    to[1] = to_float(BFloat16{static_cast<uint16_t>(from >> 16)});
  };
  for (int i = 0; i < 4; ++i) widen(mine.a[i], a[i]);
  for (int i = 0; i < 2; ++i) widen(mine.b[i], b[i]);
  emulated::multiply(d, mine);
}

inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::Fragments<int8_t, 4> mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  unsigned sums[4];  // which wrap
  std::memcpy(sums, d, sizeof d);
  emulated::multiply(sums, mine);
  std::memcpy(d, sums, sizeof d);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  emulated::load_matrices(r, shared_row, false);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row) {
  emulated::load_matrices(r, shared_row, false);
}
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  emulated::load_matrices(r, shared_row, true);
}
inline void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* shared_row) {
  emulated::load_matrices(r, shared_row, true);
}

inline void cp_async16(void* shared, const void* global, bool valid) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
  if (misaligned(shared) || misaligned(global))
    emulation::fault("copies from or to an address that is not 16-byte aligned (cp.async)");
  emulation::copy_later(shared, valid ? global : nullptr, 16);
}
inline void cp_async_commit() {
  emulation::commit_copies();
}
template <int kGroups>
void cp_async_wait() {
  emulation::wait_for_copies(kGroups);
}

inline void wait_for_kernel_ahead() {
  emulation::wait_for_kernel_ahead();
}
inline void let_next_kernel_start() {}
inline void prefetch(const void* global, int64_t bytes) {  // sanitizers see whether it is there
  const auto* const all = static_cast<const volatile char*>(global);
  if (bytes > 0) static_cast<void>(all[0] + all[bytes - 1]);
}

}  // namespace llmcore::cuda
