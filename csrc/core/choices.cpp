// Reads and writes files of choices: the subject, a line for each choice, and how many those are.
#include "core/choices.h"

#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/settings.h"

namespace llmcore {
namespace {

namespace fs = std::filesystem;

bool parse(const std::string& text, int& number) {
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  return parsed.ec == std::errc() && parsed.ptr == end && number >= 0;
}

}  // namespace

std::string cache_directory() {
  const Settings& set = settings();
  if (set.cache_dir == "off") return "";
  if (!set.cache_dir.empty()) return set.cache_dir;
  const fs::path caches = set.user_cache_dir, home = set.home;
  if (caches.is_absolute()) return (caches / "llmcore").string();
  return home.is_absolute() ? (home / ".cache/llmcore").string() : "";
}

Choices read_choices(const std::string& file, const std::string& subject) {
  std::ifstream stream(file);
  std::string line;
  if (!std::getline(stream, line) || line != subject) return {};
  Choices choices;
  int number = 0;
  while (std::getline(stream, line)) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) {  // the last line
      const bool whole = parse(line, number) && static_cast<size_t>(number) == choices.size();
      return whole && !std::getline(stream, line) ? choices : Choices{};
    }
    if (!parse(line.substr(tab + 1), number)) return {};
    choices[line.substr(0, tab)] = number;
  }
  return {};
}

void write_choices(const std::string& file, const std::string& subject, const Choices& choices) {
  const std::string fresh = str(file, ".", getpid());
  std::error_code error;
  fs::create_directories(fs::path(file).parent_path(), error);
  std::ofstream stream(fresh);
  stream << subject << '\n';
  for (const auto& [name, choice] : choices) stream << name << '\t' << choice << '\n';
  stream << choices.size() << '\n';
  stream.close();
  if (stream.good()) fs::rename(fresh, file, error);
  if (stream.good() && !error) return;
  fs::remove(fresh, error);
  throw ConfigError(
      str("could not write ", file, "; set LLMCORE_CACHE_DIR to a directory that can be written"));
}

}  // namespace llmcore
