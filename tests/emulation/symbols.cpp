// The local symbols of kernels: their names and their shared memory, read from the file of the
// module that runs.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "settings.h"

namespace emulation {
namespace {

std::string demangled(const std::string& symbol) {
  int status = 0;
  char* name = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  const std::string result = status == 0 ? name : symbol;
  std::free(name);
  return result;
}

struct Symbol {
  std::string name;  // as the linker has it
  const void* address;
  size_t bytes;
  bool function;
};

// All symbols of the module that `kernel` is in; none where it was stripped of them.
std::vector<Symbol> read_symbols(const void* kernel) {
  std::vector<Symbol> all;
  Dl_info found{};
  link_map* module = nullptr;
  if (dladdr1(kernel, &found, reinterpret_cast<void**>(&module), RTLD_DL_LINKMAP) == 0) return all;
  const std::string path = *module->l_name == 0 ? "/proc/self/exe" : module->l_name;
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  std::vector<char> file(stream ? static_cast<size_t>(stream.tellg()) : 0);
  stream.seekg(0).read(file.data(), static_cast<std::streamsize>(file.size()));
  if (file.size() < sizeof(ElfW(Ehdr))) return all;
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
    const char* names = file.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(ElfW(Sym)); ++j)
      all.push_back({.name = names + symbols[j].st_name,
                     .address = reinterpret_cast<const void*>(module->l_addr + symbols[j].st_value),
                     .bytes = symbols[j].st_size,
                     .function = ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC});
  }
  return all;
}

// The same, read once: all kernels are in the module of the emulation.
const std::vector<Symbol>& symbols_beside(const void* kernel) {
  static const std::vector<Symbol> symbols = read_symbols(kernel);
  return symbols;
}

std::string symbol_of(const void* kernel) {
  for (const Symbol& symbol : symbols_beside(kernel))
    if (symbol.function && symbol.address == kernel) return symbol.name;
  return "";
}

}  // namespace

std::string kernel_name(const void* kernel, const std::string& type) {
  const std::string symbol = symbol_of(kernel);
  return symbol.empty() ? type : demangled(symbol);
}

size_t static_shared(const void* kernel) {
  const std::string symbol = symbol_of(kernel);
  if (!symbol.starts_with("_Z")) return 0;
  const std::string inside = "_ZZ" + symbol.substr(2) + "E";
  size_t bytes = 0;
  for (const Symbol& variable : symbols_beside(kernel))
    if (variable.name.starts_with(inside)) bytes += variable.bytes;
  return bytes;
}

}  // namespace emulation
