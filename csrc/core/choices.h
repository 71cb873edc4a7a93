// Choices that were found to be the best on this machine, by name, in a file of the user's cache
// directory: what is chosen is then the same in every run.
#pragma once

#include <map>
#include <string>

namespace llmcore {

using Choices = std::map<std::string, int>;

// Where such files go: LLMCORE_CACHE_DIR, or llmcore in XDG_CACHE_HOME or ~/.cache. Empty where the
// variable is "off" or no home is known.
std::string cache_directory();

// A file that is not there, that is of another `subject`, or that is damaged has none.
Choices read_choices(const std::string& file, const std::string& subject);
// Makes the directory; who reads meanwhile sees the old file or the new one. Throws ConfigError
// where it cannot be written.
void write_choices(const std::string& file, const std::string& subject, const Choices& choices);

}  // namespace llmcore
