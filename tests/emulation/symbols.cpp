// The names of kernels, which are local symbols: read from the file of the module that runs.
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

std::string demangled(const char* symbol) {
  int status = 0;
  char* name = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  const std::string result = status == 0 ? name : symbol;
  std::free(name);
  return result;
}

}  // namespace

std::string kernel_name(const void* kernel, const std::string& type) {
  Dl_info found{};
  link_map* module = nullptr;
  if (dladdr1(kernel, &found, reinterpret_cast<void**>(&module), RTLD_DL_LINKMAP) == 0) return type;
  std::ifstream stream(*module->l_name == 0 ? "/proc/self/exe" : module->l_name, std::ios::binary);
  const std::vector<char> file{std::istreambuf_iterator<char>(stream), {}};
  if (file.size() < sizeof(ElfW(Ehdr))) return type;
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  const ElfW(Addr) address = reinterpret_cast<ElfW(Addr)>(kernel) - module->l_addr;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
    const char* names = file.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(ElfW(Sym)); ++j)
      if (symbols[j].st_value == address && ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC)
        return demangled(names + symbols[j].st_name);
  }
  return type;
}

}  // namespace emulation
