// The environment variables, read in one place, once.
#pragma once

#include <string>

namespace llmcore {

struct Settings {
  std::string
      cpu_isa;  // LLMCORE_CPU_ISA: force a kernel table ("generic", "avx2", "avx512", "neon")
  std::string num_threads;  // LLMCORE_NUM_THREADS: size of the thread pool
  std::string device;       // LLMCORE_DEVICE: default device of the command line ("cpu", "cuda")
  std::string cache_dir;  // LLMCORE_CACHE_DIR: where what was timed is remembered ("off": nowhere)
  std::string user_cache_dir, home;  // XDG_CACHE_HOME and HOME: where that is otherwise
};

// Each is empty where the variable is not set.
const Settings& settings();

}  // namespace llmcore
