// Reads the environment variables.
#include "core/settings.h"

#include <cstdlib>

namespace llmcore {
namespace {
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}
}  // namespace

const Settings& settings() {
  static const Settings values{.cpu_isa = variable("LLMCORE_CPU_ISA"),
                               .num_threads = variable("LLMCORE_NUM_THREADS"),
                               .device = variable("LLMCORE_DEVICE"),
                               .cache_dir = variable("LLMCORE_CACHE_DIR"),
                               .user_cache_dir = variable("XDG_CACHE_HOME"),
                               .home = variable("HOME")};
  return values;
}

}  // namespace llmcore
