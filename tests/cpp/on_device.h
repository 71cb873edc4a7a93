// What the checks of the emulation share: arrays on the device, and launches.
#pragma once

#include <cuda_runtime.h>

#include "checking.h"

namespace llmcore::checking {

inline void expect(const std::string& name, bool good) {
  report(name, good);
}

// An array on the device.
template <class T>
struct Array {
  T* data = nullptr;
  int64_t count;

  explicit Array(int64_t count) : count(count) { cudaMalloc(&data, count * sizeof(T)); }
  explicit Array(const std::vector<T>& values) : Array(static_cast<int64_t>(values.size())) {
    cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Array() { cudaFree(data); }
  Array(const Array&) = delete;

  std::vector<T> read() const {
    std::vector<T> values(count);
    cudaDeviceSynchronize();
    cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }
};

template <class... Parameters, class... Arguments>
cudaError_t start(cudaStream_t stream, int blocks, int threads, size_t shared_bytes,
                  void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

void check_products();   // cuBLASLt
void check_fragments();  // tensor cores

}  // namespace llmcore::checking
