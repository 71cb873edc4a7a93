// The one place that decides which instruction set runs.
#include <string>

#include "core/error.h"
#include "core/settings.h"
#include "ops/kernels.h"

namespace llmcore {

#if defined(__x86_64__)
// Weak: a build may leave some out, whose address is then null.
namespace generic {
extern const Kernels kernels __attribute__((weak));
}
namespace avx2 {
extern const Kernels kernels __attribute__((weak));
}
namespace avx512 {
extern const Kernels kernels __attribute__((weak));
}
namespace avx512_bf16 {
extern const Kernels kernels __attribute__((weak));
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#else
namespace generic {
extern const Kernels kernels;
}
#endif

namespace {

struct Table {
  const Kernels* kernels;
  bool runs_here;
  bool usable() const { return kernels != nullptr && runs_here; }
};

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("pclmul");
}

const Table kTables[] = {
    {&generic::kernels, true},
    {&avx2::kernels, static_cast<bool>(__builtin_cpu_supports("avx2")) &&
                         __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                         __builtin_cpu_supports("pclmul")},
    {&avx512::kernels, has_avx512()},
    {&avx512_bf16::kernels, has_avx512() && __builtin_cpu_supports("vpclmulqdq") &&
                                __builtin_cpu_supports("avx512vnni") &&
                                __builtin_cpu_supports("avx512bf16")},
};
#elif defined(__aarch64__)
const Table kTables[] = {{&neon::kernels, true}};
#else
const Table kTables[] = {{&generic::kernels, true}};
#endif

const Kernels& choose() {
  const KernelNames names = available_cpu_kernels();
  const std::string& wanted = settings().cpu_isa;
  std::string listed;
  for (int i = 0; i < names.count; ++i) listed += str(i == 0 ? "" : ", ", names.names[i]);
  const Kernels* best = nullptr;
  for (const Table& table : kTables)
    if (table.usable() && (wanted.empty() || wanted == table.kernels->name)) best = table.kernels;
  CHECK(best != nullptr, ConfigError, "LLMCORE_CPU_ISA is '", wanted,
        "', but this processor and build have: ", listed);
  return *best;
}

}  // namespace

KernelNames available_cpu_kernels() {
  KernelNames names{};
  for (const Table& table : kTables)
    if (table.usable()) names.names[names.count++] = table.kernels->name;
  return names;
}

const Kernels& cpu_kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace llmcore
