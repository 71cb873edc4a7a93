// Reads cores, quota and memory from the operating system.
#include "core/machine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace llmcore {
namespace {

std::string first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// Control groups, version 2 then 1. Both are mounted at fixed places inside containers.
double cgroup_quota() {
  std::istringstream unified(first_line("/sys/fs/cgroup/cpu.max"));
  double quota = 0, period = 0;
  if (unified >> quota >> period && period > 0) return quota / period;
  std::istringstream quota_v1(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"));
  std::istringstream period_v1(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
  if (quota_v1 >> quota && period_v1 >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

int64_t cgroup_memory() {
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::istringstream text(first_line(path));
    int64_t bytes = 0;
    if (text >> bytes && bytes > 0) return bytes;
  }
  return 0;
}

}  // namespace

CoreCounts core_counts() {
  CoreCounts counts{};
  counts.logical = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  counts.affinity = counts.logical;
  counts.physical = counts.logical;
#if defined(__linux__)
  counts.logical = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    counts.affinity = CPU_COUNT(&allowed);
    std::set<std::string> cores;  // hardware threads of one core name the same list of siblings
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                                              "/topology/thread_siblings_list");
      cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    counts.physical = static_cast<int>(cores.size());
  }
#endif
  counts.quota = cgroup_quota();
  return counts;
}

int usable_cores() {
  const CoreCounts counts = core_counts();
  int cores = std::max(1, counts.physical);
  if (counts.quota > 0)
    cores = std::min(cores, std::max(1, static_cast<int>(std::ceil(counts.quota))));
  return cores;
}

int64_t memory_bytes() {
  const int64_t machine =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  const int64_t limit = cgroup_memory();
  return limit > 0 ? std::min(machine, limit) : machine;
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace llmcore
