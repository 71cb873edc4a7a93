// The instructions that CUDA C++ has no name for: tensor cores, their loads, asynchronous copies,
// fast exponentials, and how kernels follow one another.
//
// The only inline PTX of the house; tests/emulation/cuda/ptx.h does the same on the CPU. Lanes of a
// warp call all but the copies together. How a matrix is spread over the lanes (PTX ISA,
// "Matrix Fragments"), with g = lane / 4 and t = lane % 4; "lower" half and byte first:
//
//   mma_bfloat16   a[0] (g, 2t..2t+1)   a[1] (g+8, 2t..)   a[2] (g, 2t+8..)    a[3] (g+8, 2t+8..)
//   16 x 8 x 16    b[0] (2t..2t+1, g)   b[1] (2t+8.., g)
//   mma_int8       a[0] (g, 4t..4t+3)   a[1] (g+8, 4t..)   a[2] (g, 4t+16..)   a[3] (g+8, 4t+16..)
//   16 x 8 x 32    b[0] (4t..4t+3, g)   b[1] (4t+16.., g)
//   both           d[0] (g, 2t)         d[1] (g, 2t+1)     d[2] (g+8, 2t)      d[3] (g+8, 2t+1)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "bfloat16 tensor cores and asynchronous copies need compute capability 8.0"
#endif

namespace llmcore::cuda {

// Two floats as bfloat16, rounded to nearest, ties to even; `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x, to 2 units in the last place; zero where that is subnormal.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d += a b, a [16, 16] and b [16, 8] of bfloat16.
__device__ __forceinline__ void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b, a [16, 32] and b [32, 8] of int8; wraps.
__device__ __forceinline__ void mma_int8(int (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 8 x 8 matrices of 16-bit elements: lane i names row i % 8, 16-byte aligned, of matrix i / 8, and
// gets of matrix m its elements (g, 2t..2t+1) in r[m]; transposed (2t..2t+1, g). Of two matrices,
// lanes 0 to 15 name the rows.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

// Begins to copy 16 bytes, both addresses 16-byte aligned; zeros when not valid, and then `global`
// is not read. Copies form groups; who waits for a group sees its own thread's copies alone, until
// a barrier.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most so many groups, the latest, are under way.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Kernels that overlap (programmatic dependent launch, compute capability 9.0 and later; before it
// none does): one may start when all blocks of the kernel ahead have let it. What that writes is
// seen after waiting for it alone.
__device__ __forceinline__ void wait_for_kernel_ahead() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// One thread brings so many bytes from `global` on to the L2 cache, where all see the same: they
// may be about to be written. In units of 16; nothing where no kernel starts early.
__device__ __forceinline__ void prefetch([[maybe_unused]] const void* global,
                                         [[maybe_unused]] int64_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const size_t from = __cvta_generic_to_global(global);
  if (from % 16 == 0 && bytes >= 16)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(static_cast<uint32_t>(bytes) / 16 * 16));
#endif
}

}  // namespace llmcore::cuda
