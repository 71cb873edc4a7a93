// How kernels are started: sizes of grids, and a call that runs under the emulation too.
#pragma once

#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "cuda/ptx.h"
#include "cuda/queue.h"
#include "cuda/shared.h"

namespace llmcore::cuda {

inline constexpr int kWarp = 32;

// Blocks that `count` things make, so many a block.
LLMCORE_INLINE int64_t blocks_of(int64_t count, int64_t a_block) {
  return (count + a_block - 1) / a_block;
}

// What every kernel does first: it may have been started while the one ahead of it in the queue
// still ran. Before this it may prefetch, no more.
__device__ __forceinline__ void take_turn() {
  wait_for_kernel_ahead();
  let_next_kernel_start();
}

// A kernel may have so much dynamic shared memory from now on: what is never said again for less,
// as another thread may be about to start it with more. 48 KiB are had unasked, less what the
// kernel's own variables take.
inline void allow_shared(int device, const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{device, kernel}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  most = bytes;
}

// Starts `kernel` with `shared` bytes of dynamic shared memory; see dynamic_shared().
template <class... Parameters, class... Args>
void launch(const Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared, Args&&... args) {
  check(cudaSetDevice(context.queue->device), "cudaSetDevice");
  allow_shared(context.queue->device, reinterpret_cast<const void*>(kernel), shared);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = context.queue->stream;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = context.queue->overlaps && joined_queue != context.queue ? 1 : 0;
  if (joined_queue == context.queue) joined_queue = nullptr;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "launching a kernel");
}

// The same for `count` independent things, one a thread: kernels compute thread_index() and compare
// it with the count.
template <class... Parameters, class... Args>
void launch_each(const Context& context, void (*kernel)(Parameters...), int64_t count,
                 Args&&... args) {
  constexpr int kThreads = 256;
  launch(context, kernel, dim3(static_cast<unsigned>(blocks_of(count, kThreads))), dim3(kThreads),
         0, std::forward<Args>(args)...);
}

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// visit(T{}) with the type of an activation: float or BFloat16.
template <class Visit>
void with_type(DType dtype, Visit visit) {
  if (dtype == DType::kBFloat16)
    visit(BFloat16{});
  else
    visit(float{});
}

// visit(std::bool_constant) with a condition that a kernel wants to know when it is compiled.
template <class Visit>
void with_bool(bool condition, Visit visit) {
  if (condition)
    visit(std::true_type{});
  else
    visit(std::false_type{});
}

}  // namespace llmcore::cuda
