// Which kernels a device runs: the CPU's table, or CUDA's where this build has it.
#pragma once

#include <string>
#include <vector>

#include "core/context.h"
#include "ops/kernels.h"

namespace llmcore {

// The kernel table of a device. Throws DeviceError with the reason and the cure where there is
// none. To plan, none needs to be there, as long as this build knows its type.
const Kernels& kernels_for(Device device, Backing backing = Backing::kMemory);

// What the calling thread runs single operations in: an arena of its own.
Context thread_context(Device device);
inline Context cpu_context() {
  return thread_context({});
}

// Parses "cpu", "cuda", "cuda:1"; throws DeviceError, to run also where there is no such device.
Device device_from_name(const std::string& name, Backing backing = Backing::kMemory);
std::string device_name(Device device);
// Throws DeviceError: `op` takes tensors of one device.
void check_same_device(const char* op, Device one, Device other);

// Linked from backend_cuda.cu, or from backend_no_cuda.cpp in a build without it.
const Kernels* cuda_kernels();                 // null without it
const std::string& cuda_unavailable_reason();  // empty: CUDA can be used

// What there is of CUDA, usable or not; versions as 13000 for 13.0, 0 for none.
struct CudaDevice {
  std::string name;
  int64_t memory_bytes;
  int capability[2];
  int multiprocessors;
};
struct CudaInfo {
  int driver_version = 0, runtime_version = 0;
  std::vector<CudaDevice> devices;
  std::string library_path, library_reason;  // of cuBLASLt: one of the two is empty
};
const CudaInfo& cuda_info();

}  // namespace llmcore
