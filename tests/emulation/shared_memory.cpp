// Finds the thread-local variables of this module, and fills them.
#include "shared_memory.h"

#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace emulation {

#if !defined(__SANITIZE_ADDRESS__)
namespace {

struct Range {
  char* data = nullptr;
  size_t bytes = 0;
};

thread_local char anchor;  // makes sure that there are some

int find_module(dl_phdr_info* info, size_t, void* found) {
  if (info->dlpi_tls_data == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    char* data = static_cast<char*>(info->dlpi_tls_data);
    if (header.p_type != PT_TLS || &anchor < data || &anchor >= data + header.p_memsz) continue;
    *static_cast<Range*>(found) = {data, header.p_memsz};
    return 1;
  }
  return 0;
}

}  // namespace

StaticShared::StaticShared() {
  thread_local Range range;
  anchor = 1;
  if (range.data == nullptr) dl_iterate_phdr(find_module, &range);
  data_ = range.data;
  before_.assign(range.data, range.data + range.bytes);
}

StaticShared::~StaticShared() {
  std::memcpy(data_, before_.data(), before_.size());
}

void StaticShared::fill() {
  std::memset(data_, 0xff, before_.size());
}
#else
StaticShared::StaticShared() = default;
StaticShared::~StaticShared() = default;
void StaticShared::fill() {}
#endif

void* take_dynamic_shared(size_t bytes) {
  void* memory = nullptr;
  if (bytes == 0) return nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return memory;
}

void give_dynamic_shared(void* memory) {
  std::free(memory);
}

}  // namespace emulation
