// Shared libraries that are opened when first needed, so that a machine without them still runs
// everything else.
#pragma once

#include <string>
#include <vector>

namespace llmcore {

// Where to look besides the system's own places: the folders of Python packages.
void set_library_folders(std::vector<std::string> folders);

// A library stays open for as long as the process runs.
struct Library {
  void* handle = nullptr;  // null where it could not be opened
  std::string path;        // of the file that was opened
  std::string reason;      // why it could not be opened, and where it was looked for

  // The address of a function; null, and a reason, where the library lacks it.
  void* function(const char* name);
};

// Opens "libcublasLt.so.13": the copy that this process has already (PyTorch may have brought one),
// one in the folders, or the system's.
Library open_library(const std::string& file);

}  // namespace llmcore
