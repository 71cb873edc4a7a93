// Orders, eagerness and faults, and the environment variables that set them.
#include "settings.h"

#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "emulation.h"

namespace emulation {
namespace {

struct Settings {
  enum Order { kForward, kBackward, kRandom } order = kForward;
  std::mt19937_64 random;
  bool eager = false, apart = true, thrown = false, lost = false, forked = false;
  bool survives_forks = false;
  long failure = 0;  // of which kernel; none
  int ptx = 90;
  size_t shared = 163;  // KiB

  Settings() {
    if (const char* order = std::getenv("LLMCORE_EMULATED_ORDER")) set_order(order);
    eager = flag("LLMCORE_EMULATED_EAGER", eager);
    apart = flag("LLMCORE_EMULATED_APART", apart);
    if (const char* number = std::getenv("LLMCORE_EMULATED_FAILURE")) failure = std::stol(number);
    if (const char* number = std::getenv("LLMCORE_EMULATED_PTX")) ptx = std::stoi(number);
    if (const char* number = std::getenv("LLMCORE_EMULATED_SHARED")) shared = std::stoul(number);
  }

  static bool flag(const char* name, bool otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::string(value) == "1";
  }

  void set_order(const std::string& name) {
    const std::string prefix = "random:";
    if (name == "forward") {
      order = kForward;
    } else if (name == "backward") {
      order = kBackward;
    } else if (name.starts_with(prefix) && name.size() > prefix.size() &&
               name.find_first_not_of("0123456789", prefix.size()) == std::string::npos) {
      order = kRandom;
      random.seed(std::stoull(name.substr(prefix.size())));
    } else {
      throw std::invalid_argument(
          "emulated order: must be 'forward', 'backward' or "
          "'random:SEED', got '" +
          name + "'");
    }
  }
};

Settings& settings() {
  static Settings& settings = *[] {
    pthread_atfork(nullptr, nullptr, [] { emulation::settings().forked = true; });
    return new Settings;
  }();
  return settings;
}

}  // namespace

void set_order(const std::string& order) {
  settings().set_order(order);
}

void set_eager(bool eager) {
  settings().eager = eager;
}

bool is_eager() {
  return settings().eager;
}

bool is_apart() {
  return settings().apart;
}

bool loses_device() {
  Settings& set = settings();
  if (set.failure > 0 && --set.failure == 0) set.lost = true;
  return set.lost;
}

bool is_lost() {
  return settings().lost;
}

void survive_forks() {
  settings().survives_forks = true;
}

bool is_forked() {
  return settings().forked && !settings().survives_forks;
}

size_t shared_memory() {
  return settings().shared << 10;
}

int ptx_version() {
  return settings().ptx;
}

void throw_faults(bool thrown) {
  settings().thrown = thrown;
}

void fail(const std::string& what) {
  if (settings().thrown) throw Fault(what);
  std::fprintf(stderr, "emulated GPU: %s\n", what.c_str());
  std::abort();
}

void arrange(std::span<int> items) {
  if (settings().order == Settings::kRandom)
    std::shuffle(items.begin(), items.end(), settings().random);
  else if (settings().order == Settings::kBackward)
    std::reverse(items.begin(), items.end());
}

int choose(int count) {
  if (settings().order == Settings::kForward) return 0;
  if (settings().order == Settings::kBackward) return count - 1;
  return static_cast<int>(settings().random() % static_cast<uint64_t>(count));
}

}  // namespace emulation
