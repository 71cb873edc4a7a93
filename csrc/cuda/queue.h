// A GPU's queue: its stream, what matrix products keep beside it, and how errors of CUDA are told.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <mutex>

#include "core/context.h"
#include "core/error.h"

namespace llmcore::cuda {

struct Products;  // cuda/products.h

// Who waits for a whole device, as memory does when it is allocated, breaks off what any thread
// captures: they take turns. Who holds a mutex that work may take while it is captured takes its
// turn before that.
std::recursive_mutex& device_turns();
using DeviceTurn = std::unique_lock<std::recursive_mutex>;

// Throws OutOfMemory or DeviceError, saying what failed, unless `status` is success.
void check(cudaError_t status, const char* what);

}  // namespace llmcore::cuda

namespace llmcore {

struct Queue {
  int device = 0;
  cudaStream_t stream = nullptr;
  bool overlaps = false;  // a kernel may start before the one ahead has ended: see take_turn()
  std::shared_ptr<cuda::Products> products;  // made at the first product
  void* workspace = nullptr;                 // of its products; null: the one that `products` keep
  cudaStream_t side = nullptr;               // for what is done beside it: gpu::Side
};

namespace cuda {

// What this thread has last told to wait for another queue, and asked for no kernel since: that one
// must not start early, as it would wait for the kernel ahead of it in the same queue alone.
inline thread_local const Queue* joined_queue = nullptr;

inline cudaStream_t stream_of(const Context& context) {
  return context.queue->stream;
}

}  // namespace cuda

}  // namespace llmcore
