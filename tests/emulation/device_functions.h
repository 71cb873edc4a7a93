// What device code calls: barriers, shuffles, votes, atomics, loads and stores, arithmetic.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local  // see shared_memory.h
#endif

// ---------------------------------------------------------------------------- barriers and warps

inline void __syncthreads() {
  emulation::barrier();
}
inline int __syncthreads_count(int predicate) {
  return emulation::barrier(predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return emulation::barrier(predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate) {
  return emulation::barrier(predicate == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::leave(emulation::meet(emulation::Together::kSync, mask, nullptr, 0));
}

inline unsigned __activemask() {
  return emulation::running_lanes();
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto votes = emulation::warp_exchange(emulation::Together::kVote, mask, predicate != 0);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) ballot |= static_cast<unsigned>(votes[i]) << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate == 0) == 0;
}

namespace emulation {

// Lanes exchange within groups of `width`; who has no partner there keeps its own value.
template <class T>
T shuffle(unsigned mask, T value, int partner, bool there) {
  const auto values = warp_exchange(Together::kShuffle, mask, value);
  return there ? values[partner] : value;
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = warpSize) {
  const int group = emulation::lane() & ~(width - 1);
  return emulation::shuffle(mask, value, group + (from & (width - 1)), true);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int partner = emulation::lane() - static_cast<int>(delta);
  return emulation::shuffle(mask, value, partner, partner >= (emulation::lane() & ~(width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int partner = emulation::lane() + static_cast<int>(delta);
  return emulation::shuffle(mask, value, partner, partner <= (emulation::lane() | (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  const int partner = emulation::lane() ^ lanes;
  return emulation::shuffle(mask, value, partner, partner <= (emulation::lane() | (width - 1)));
}

// --------------------------------------------------------------------------------------- atomics

// Threads take turns, so that plain arithmetic is atomic. There are none on floats: sums of
// floats have a fixed order here.
#define EMULATED_ATOMIC(name, T, result) \
  inline T name(T* address, T value) {   \
    const T before = *address;           \
    *address = result;                   \
    return before;                       \
  }
#define EMULATED_ATOMICS(T)                                      \
  EMULATED_ATOMIC(atomicAdd, T, before + value)                  \
  EMULATED_ATOMIC(atomicMax, T, before < value ? value : before) \
  EMULATED_ATOMIC(atomicMin, T, value < before ? value : before) \
  EMULATED_ATOMIC(atomicExch, T, value)                          \
  EMULATED_ATOMIC(atomicAnd, T, before& value)                   \
  EMULATED_ATOMIC(atomicOr, T, before | value)                   \
  inline T atomicCAS(T* address, T compare, T value) {           \
    const T before = *address;                                   \
    if (before == compare) *address = value;                     \
    return before;                                               \
  }
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned)
EMULATED_ATOMICS(unsigned long long)
#undef EMULATED_ATOMICS
#undef EMULATED_ATOMIC

// ------------------------------------------------------------------------------ loads and stores

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

// ------------------------------------------------------------------------------------ arithmetic

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __dp4a(int x, int y, int sum) {
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(x >> i) * static_cast<int8_t>(y >> i);
  return sum;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
// As the toolkit has them, beside the standard library's own.
template <class T>
requires std::is_integral_v<T> T min(T x, T y) {
  return y < x ? y : x;
}
template <class T>
requires std::is_integral_v<T> T max(T x, T y) {
  return x < y ? y : x;
}
inline float min(float x, float y) {
  return std::fmin(x, y);
}
inline float max(float x, float y) {
  return std::fmax(x, y);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
