// What is allocated on the emulated device and pinned on the host, by address.
#pragma once

#include <cstddef>

#include "cuda_runtime.h"

namespace emulation {

size_t device_memory();  // all of it: 4 GiB, or LLMCORE_EMULATED_MEMORY MiB

// Bytes of the device's memory that are in use.
size_t used_memory();

// Takes that much of the device's memory, or gives it back; false if there is too little.
bool take_memory(size_t bytes);
void give_memory(size_t bytes);

void add_range(void* data, size_t bytes, cudaMemoryType type);
// How many bytes start there, 0 if nothing does.
size_t remove_range(void* data, cudaMemoryType type);

// Whose the bytes are. Those that leave an allocation are nobody's: `good` is false.
cudaMemoryType type_of(const void* data, size_t bytes, bool& good);

// New memory holds NaN, unless built for speed.
void fill_new(void* data, size_t bytes);

}  // namespace emulation
