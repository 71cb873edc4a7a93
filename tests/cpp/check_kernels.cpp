// Checks every kernel family against plain loops, without Python: for machines that are emulated.
//
//   check_kernels                          0 where all agree; otherwise says what does not
//   check_kernels train MODEL FILE FILE    one training step, from a file and into one
//
// tests/test_neon.py builds it, runs it, and compares the training step with the Python package's.
#include <cstring>
#include <exception>

#include "checking.h"

int main(int argc, char** argv) {
  using namespace llmcore::checking;
  try {
    if (argc == 5 && std::strcmp(argv[1], "train") == 0) return train(argv[2], argv[3], argv[4]);
    check_matmul();
    check_attention();
    check_rows();
    check_tables();
    check_loading();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  std::printf("%s: %d failures\n", context().kernels->name, failures);
  return failures == 0 ? 0 : 1;
}
