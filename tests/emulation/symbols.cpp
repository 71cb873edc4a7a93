// The local symbols of kernels: their names and their shared memory, read from the file of the
// module that runs.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
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

// visit(name, symbol, address) for all symbols of the module that `kernel` is in; none where it was
// stripped of them.
template <class Visit>
void visit_symbols(const void* kernel, Visit visit) {
  Dl_info found{};
  link_map* module = nullptr;
  if (dladdr1(kernel, &found, reinterpret_cast<void**>(&module), RTLD_DL_LINKMAP) == 0) return;
  std::ifstream stream(*module->l_name == 0 ? "/proc/self/exe" : module->l_name, std::ios::binary);
  const std::vector<char> file{std::istreambuf_iterator<char>(stream), {}};
  if (file.size() < sizeof(ElfW(Ehdr))) return;
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
    const char* names = file.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(ElfW(Sym)); ++j)
      visit(std::string(names + symbols[j].st_name), symbols[j],
            reinterpret_cast<const void*>(module->l_addr + symbols[j].st_value));
  }
}

// As the linker has it.
std::string symbol_of(const void* kernel) {
  std::string found;
  visit_symbols(kernel, [&](const std::string& name, const ElfW(Sym) & symbol, const void* at) {
    if (at == kernel && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC) found = name;
  });
  return found;
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
  visit_symbols(kernel, [&](const std::string& name, const ElfW(Sym) & variable, const void*) {
    if (name.starts_with(inside)) bytes += variable.st_size;
  });
  return bytes;
}

}  // namespace emulation
