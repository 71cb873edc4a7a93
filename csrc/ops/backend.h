// Which kernels a device runs: the CPU's table, or CUDA's where this build has it.
#pragma once

#include <string>

#include "core/context.h"
#include "ops/kernels.h"

namespace llmcore {

// The kernel table of a device. Throws DeviceError with the reason and the cure where there is
// none.
const Kernels& kernels_for(Device device);

// What the calling thread runs single operations in: an arena of its own.
Context thread_context(Device device);
inline Context cpu_context() {
  return thread_context({});
}

// Parses "cpu", "cuda", "cuda:1"; throws DeviceError.
Device device_from_name(const std::string& name);
std::string device_name(Device device);

// Linked from backend_cuda.cpp, or from backend_no_cuda.cpp in a build without it.
const Kernels* cuda_kernels();
std::string cuda_unavailable_reason();  // empty: CUDA can be used

}  // namespace llmcore
