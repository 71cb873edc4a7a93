// The shared memory of the block that runs, which nobody has written yet: all bits are set.
//
// `__shared__` variables are `static thread_local`: that puts those of all kernels side by side,
// templates' too, which no section attribute does. What else of this module is thread-local is
// put aside meanwhile. AddressSanitizer guards plain statics better, and then they are.
#pragma once

#include <cstddef>
#include <vector>

namespace emulation {

class StaticShared {
 public:
  StaticShared();
  ~StaticShared();
  StaticShared(const StaticShared&) = delete;
  StaticShared& operator=(const StaticShared&) = delete;

  void fill();

 private:
  char* data_ = nullptr;
  std::vector<char> before_;
};

// Of that size exactly, so that AddressSanitizer sees who leaves it.
void* take_dynamic_shared(size_t bytes);
void give_dynamic_shared(void* memory);

}  // namespace emulation
