// Errors, the emulated device, and what a launch must keep to.
#include <algorithm>
#include <map>
#include <utility>

#include "memory.h"
#include "settings.h"
#include "streams.h"

namespace emulation {
namespace {

constexpr size_t kShared = 48 << 10, kSharedTotal = 164 << 10;

thread_local cudaError_t last_error = cudaSuccess;
// Of dynamic shared memory: what a kernel asked for, or what its own variables leave of the least.
size_t& shared_limit(const void* kernel) {
  static std::map<const void*, size_t> limits;
  const auto [found, fresh] = limits.try_emplace(kernel);
  if (fresh) found->second = kShared - static_shared(kernel);
  return found->second;
}

bool good_sizes(dim3 grid, dim3 block) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return false;
  return grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 && block.x <= 1024 &&
         block.y <= 1024 && block.z <= 64 && size_t{block.x} * block.y * block.z <= 1024;
}

}  // namespace

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t launch(cudaStream_t stream, Launch launch) {
  const Lock held = lock();
  if (!good_sizes(launch.grid, launch.block)) return remember(cudaErrorInvalidConfiguration);
  if (launch.shared_bytes > 0 && launch.shared_bytes > shared_limit(launch.kernel))
    return remember(cudaErrorInvalidValue);
  if (launch.starts_early && queue_of(stream)->joined == std::this_thread::get_id())
    fail(kernel_name(launch.kernel, launch.signature) +
         " may start before what its stream is to wait for");
  return remember(enqueue(stream, [launch = std::move(launch)] {
    if (!loses_device()) run(launch);
  }));
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const Lock held = lock();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) + static_shared(kernel) > shared_memory())
    return remember(cudaErrorInvalidValue);
  shared_limit(kernel) = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t get_attributes(cudaFuncAttributes* attributes, const void* kernel) {
  const Lock held = lock();
  *attributes = {.sharedSizeBytes = static_shared(kernel),
                 .maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(kernel)),
                 .maxThreadsPerBlock = 1024,
                 .ptxVersion = ptx_version(),
                 .binaryVersion = 90};
  return cudaSuccess;
}

}  // namespace emulation

using namespace emulation;

// ---------------------------------------------------------------------------------------- errors

#define EMULATED_ERRORS(X)                                                                    \
  X(cudaSuccess, "no error")                                                                  \
  X(cudaErrorInvalidValue, "invalid argument")                                                \
  X(cudaErrorMemoryAllocation, "out of memory")                                               \
  X(cudaErrorInitializationError, "initialization error")                                     \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                          \
  X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                     \
  X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for the runtime")       \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                  \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                                         \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                \
  X(cudaErrorSymbolNotFound, "named symbol not found")                                        \
  X(cudaErrorNotReady, "device not ready")                                                    \
  X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                         \
  X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                      \
  X(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                    \
  X(cudaErrorMisalignedAddress, "misaligned address")                                         \
  X(cudaErrorLaunchFailure, "unspecified launch failure")                                     \
  X(cudaErrorNotSupported, "operation not supported")                                         \
  X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")    \
  X(cudaErrorStreamCaptureInvalidated, "operation failed due to an error during capture")     \
  X(cudaErrorStreamCaptureMerge, "operation would merge two separate captures")               \
  X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the stream that began it")     \
  X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                     \
  X(cudaErrorStreamCaptureIsolation, "dependency on uncaptured work in another stream")       \
  X(cudaErrorStreamCaptureImplicit, "operation would depend on a capturing blocking stream")  \
  X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capture") \
  X(cudaErrorUnknown, "unknown error")

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMULATED_NAME(name, text) \
  case name:                      \
    return #name;
    EMULATED_ERRORS(EMULATED_NAME)
#undef EMULATED_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define EMULATED_TEXT(name, text) \
  case name:                      \
    return text;
    EMULATED_ERRORS(EMULATED_TEXT)
#undef EMULATED_TEXT
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  return last_error;
}

// ---------------------------------------------------------------------------------------- device

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  *properties = {.name = "Emulated GPU",
                 .totalGlobalMem = device_memory(),
                 .sharedMemPerBlock = kShared,
                 .regsPerBlock = 65536,
                 .warpSize = 32,
                 .maxThreadsPerBlock = 1024,
                 .maxThreadsDim = {1024, 1024, 64},
                 .maxGridSize = {0x7fffffff, 65535, 65535},
                 .major = 9,
                 .minor = 0,
                 .multiProcessorCount = 4,
                 .integrated = 0,
                 .concurrentKernels = 1,
                 .ECCEnabled = 0,
                 .pciBusID = 0,
                 .pciDeviceID = 0,
                 .pciDomainID = 0,
                 .asyncEngineCount = 2,
                 .unifiedAddressing = 1,
                 .memoryBusWidth = 1024,
                 .l2CacheSize = 4 << 20,
                 .maxThreadsPerMultiProcessor = 2048,
                 .sharedMemPerMultiprocessor = kSharedTotal,
                 .regsPerMultiprocessor = 65536,
                 .sharedMemPerBlockOptin = shared_memory(),
                 .maxBlocksPerMultiProcessor = 32,
                 .reservedSharedMemPerBlock = 1024};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  const std::pair<cudaDeviceAttr, int64_t> attributes[] = {
      {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
      {cudaDevAttrMaxSharedMemoryPerBlock, int64_t(p.sharedMemPerBlock)},
      {cudaDevAttrWarpSize, p.warpSize},
      {cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock},
      {cudaDevAttrClockRate, 1000000},  // kHz
      {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
      {cudaDevAttrMemoryClockRate, 1000000},
      {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth},
      {cudaDevAttrL2CacheSize, p.l2CacheSize},
      {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
      {cudaDevAttrComputeCapabilityMajor, p.major},
      {cudaDevAttrComputeCapabilityMinor, p.minor},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, p.sharedMemPerMultiprocessor},
      {cudaDevAttrMaxRegistersPerMultiprocessor, p.regsPerMultiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, p.sharedMemPerBlockOptin},
      {cudaDevAttrMaxBlocksPerMultiprocessor, p.maxBlocksPerMultiProcessor}};
  for (const auto& [name, held] : attributes)
    if (name == attribute) {
      *value = static_cast<int>(held);
      return cudaSuccess;
    }
  return remember(cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
