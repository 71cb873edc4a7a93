// What the operating system says of this machine: cores this process may use, memory, CPU name.
#pragma once

#include <cstdint>
#include <string>

namespace llmcore {

struct CoreCounts {
  int logical;   // processors that are online
  int affinity;  // of those, what the scheduler lets this process use
  int physical;  // distinct physical cores among these
  double quota;  // processors' worth of time the container may use; 0: no limit
};

CoreCounts core_counts();

// Physical cores within affinity and container quota: the default size of the thread pool.
int usable_cores();

// Bytes of memory this process may use: the machine's, or the container's limit if lower.
int64_t memory_bytes();

std::string cpu_model();

}  // namespace llmcore
