// The part of the DLPack ABI (https://dmlc.github.io/dlpack) this package speaks: 1.0, and 0.8
// before.
#pragma once

#include <cstdint>

extern "C" {

inline constexpr int32_t kDLCpu = 1, kDLCuda = 2, kDLPinned = 3;  // the last: of the CPU, for CUDA

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;  // 0: int, 1: uint, 2: float, 4: bfloat, 6: bool
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major
  uint64_t byte_offset;
};

// In a capsule named "dltensor".
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

struct DLPackVersion {
  uint32_t major;
  uint32_t minor;
};

// In a capsule named "dltensor_versioned".
struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned* self);
  uint64_t flags;  // 1: read-only, 2: copied for this export
  DLTensor dl_tensor;
};

}  // extern "C"
