// Opens shared libraries with dlopen.
#include "core/libraries.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <mutex>
#include <utility>

#include "core/error.h"

namespace llmcore {
namespace {

struct Folders {
  std::mutex mutex;
  std::vector<std::string> names;
};

Folders& folders() {
  static Folders instance;
  return instance;
}

std::vector<std::string> library_folders() {
  const std::lock_guard<std::mutex> lock(folders().mutex);
  return folders().names;
}

Library opened(void* handle, const std::string& file) {
  link_map* map = nullptr;
  const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map->l_name[0] != '\0';
  return {.handle = handle, .path = known ? map->l_name : file, .reason = {}};
}

}  // namespace

void set_library_folders(std::vector<std::string> names) {
  const std::lock_guard<std::mutex> lock(folders().mutex);
  folders().names = std::move(names);
}

void* Library::function(const char* name) {
  void* address = handle == nullptr ? nullptr : dlsym(handle, name);
  if (handle != nullptr && address == nullptr && reason.empty())
    reason = str(path, " has no function ", name, "; is it of another version?");
  return address;
}

Library open_library(const std::string& file) {
  if (void* handle = dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD)) return opened(handle, file);
  std::string looked;
  for (const std::string& folder : library_folders()) {
    const std::string path = folder + "/" + file;
    looked += str(looked.empty() ? " in " : ", ", folder);
    if (access(path.c_str(), F_OK) != 0) continue;
    if (void* handle = dlopen(path.c_str(), RTLD_LAZY)) return opened(handle, path);
    return {.reason = str(path, " cannot be opened: ", dlerror())};
  }
  if (void* handle = dlopen(file.c_str(), RTLD_LAZY)) return opened(handle, file);
  return {.reason = str(file, " was not found", looked, looked.empty() ? "" : " or",
                        " where the system looks for libraries")};
}

}  // namespace llmcore
