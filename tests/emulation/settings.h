// What was asked of the emulation, and how it tells of faults.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

bool is_eager();
bool is_apart();  // the host from the device's memory

// Whether the kernel that is about to run, or one before, is the one that LLMCORE_EMULATED_FAILURE
// counts to: it fails, and the device is lost.
bool loses_device();
bool is_lost();

// The architecture that kernels were compiled for, 90 unless LLMCORE_EMULATED_PTX is another: code
// of an older one does not wait for the kernel ahead.
int ptx_version();

// Of a block that asks for it: 163 KiB, or LLMCORE_EMULATED_SHARED.
size_t shared_memory();

// Whether this process was forked from one that used the device, and should not go on.
bool is_forked();

// Prints the fault and ends the program, or throws it.
[[noreturn]] void fail(const std::string& what);

// The name of a kernel as its source has it; `type` where the module was stripped of it.
std::string kernel_name(const void* kernel, const std::string& type);

// Bytes of the `__shared__` variables in a kernel's own body; 0 where the module was stripped.
size_t static_shared(const void* kernel);

}  // namespace emulation
