// Elements of activations as floats: one, or 16 bytes of them at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.h"
#include "cuda/ptx.h"

namespace llmcore::cuda {

__device__ __forceinline__ float as_float(float x) {
  return x;
}
__device__ __forceinline__ float as_float(BFloat16 x) {
  return to_float(x);
}

// Rounded to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return BFloat16{static_cast<uint16_t>(pack_bfloat16(x, 0.0f) & 0xffffu)};
}

// How many elements 16 bytes hold: 4 of float, 8 of bfloat16.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// Whether rows of `width` elements of T, from p on, may be read 16 bytes at a time.
template <class T>
__host__ __device__ __forceinline__ bool packs(const void* p, int64_t width) {
  return width % kPack<T> == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// The kPack<T> elements that 16 bytes hold.
template <class T>
__device__ __forceinline__ void open_pack(uint4 bytes, float (&x)[kPack<T>]) {
  const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == sizeof(float)) {
      x[i] = __uint_as_float(words[i]);
    } else {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 close_pack(const float (&x)[kPack<T>]) {
  if constexpr (sizeof(T) == sizeof(float))
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                      __float_as_uint(x[3]));
  else
    return make_uint4(pack_bfloat16(x[0], x[1]), pack_bfloat16(x[2], x[3]),
                      pack_bfloat16(x[4], x[5]), pack_bfloat16(x[6], x[7]));
}

// kPack<T> elements from p on, 16-byte aligned.
template <class T>
__device__ __forceinline__ void load_pack(const T* p, float (&x)[kPack<T>]) {
  open_pack<T>(*reinterpret_cast<const uint4*>(p), x);
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const float (&x)[kPack<T>]) {
  *reinterpret_cast<uint4*>(p) = close_pack<T>(x);
}

// The bytes of a pack of the first `count` elements from anywhere on; the others are `otherwise`.
// `aligned`: packs() of the row holds. They are not yet floats: who opens several only when all are
// asked for has their loads under way together, whichever way each of them goes.
template <class T>
__device__ __forceinline__ uint4 load_bytes(const T* p, int64_t count, bool aligned,
                                            float otherwise = 0.0f) {
  if (aligned && count >= kPack<T>) return *reinterpret_cast<const uint4*>(p);
  float x[kPack<T>];
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) x[i] = i < count ? as_float(p[i]) : otherwise;
  return close_pack<T>(x);
}

// The first `count` elements of one or several packs, likewise; the others are zero.
template <class T, int kCount>
__device__ __forceinline__ void load_up_to(const T* p, int64_t count, bool aligned,
                                           float (&x)[kCount]) {
  using Pack = float[kPack<T>];
  static_assert(kCount % kPack<T> == 0);
#pragma unroll
  for (int i = 0; i < kCount; i += kPack<T>)
    open_pack<T>(load_bytes(p + i, count - i, aligned), reinterpret_cast<Pack&>(x[i]));
}
template <class T, int kCount>
__device__ __forceinline__ void store_up_to(T* p, const float (&x)[kCount], int64_t count,
                                            bool aligned) {
  using Pack = const float[kPack<T>];
  static_assert(kCount % kPack<T> == 0);
#pragma unroll
  for (int part = 0; part < kCount; part += kPack<T>) {
    if (aligned && count - part >= kPack<T>) {
      store_pack(p + part, reinterpret_cast<Pack&>(x[part]));
    } else {
#pragma unroll
      for (int i = part; i < part + kPack<T>; ++i)
        if (i < count) p[i] = from_float<T>(x[i]);
    }
  }
}

}  // namespace llmcore::cuda
