// Virtual memory: physical memory is a file without a name, that is mapped where it is asked for.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>

#include "cuda.h"
#include "device_memory.h"
#include "memory.h"
#include "streams.h"

namespace emulation {
namespace {

constexpr size_t kGranularity = 2 << 20;

// Lives as long as its handle, or as it is mapped somewhere.
struct Physical {
  int file = -1;
  size_t bytes = 0;

  Physical(int file, size_t bytes) : file(file), bytes(bytes) {}
  Physical(const Physical&) = delete;
  ~Physical() {
    close(file);
    give_memory(bytes);
  }
};
using Shared = std::shared_ptr<Physical>;

std::map<CUmemGenericAllocationHandle, Shared>& handles =
    *new std::map<CUmemGenericAllocationHandle, Shared>;
std::map<CUdeviceptr, Shared>& mapped = *new std::map<CUdeviceptr, Shared>;

bool good(size_t bytes) {
  return bytes > 0 && bytes % kGranularity == 0;
}

void* pointer(CUdeviceptr address) {
  return reinterpret_cast<void*>(address);
}

bool map_nothing(CUdeviceptr address, size_t bytes) {
  return mmap(pointer(address), bytes, PROT_NONE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  *granularity = kGranularity;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment, CUdeviceptr,
                             unsigned long long flags) {
  if (!good(bytes) || alignment > kGranularity || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  // With room to start at a multiple of the granularity.
  void* found = mmap(nullptr, bytes + kGranularity, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUdeviceptr start = reinterpret_cast<CUdeviceptr>(found);
  const size_t before = (kGranularity - start % kGranularity) % kGranularity;
  *address = start + before;
  if (before > 0) munmap(found, before);
  munmap(pointer(*address + bytes), kGranularity - before);
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  return munmap(pointer(address), bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                     const CUmemAllocationProp* properties, unsigned long long flags) {
  const Lock held = lock();
  if (!good(bytes) || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (properties->location.id != 0) return CUDA_ERROR_INVALID_DEVICE;
  if (!take_memory(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const int file = memfd_create("emulated device memory", MFD_CLOEXEC);
  const auto memory = std::make_shared<Physical>(file, bytes);
  void* data = MAP_FAILED;
  if (file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0)
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (data == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  fill_new(data, bytes);
  munmap(data, bytes);
  static CUmemGenericAllocationHandle last = 0;
  *handle = ++last;
  handles[last] = memory;
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  const Lock held = lock();
  return handles.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
  const Lock held = lock();
  const auto found = handles.find(handle);
  if (found == handles.end() || !good(bytes) || offset != 0 || bytes != found->second->bytes ||
      address % kGranularity != 0 || flags != 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second->file, 0) ==
      MAP_FAILED)
    return CUDA_ERROR_INVALID_VALUE;
  mapped[address] = found->second;
  add_range(pointer(address), bytes, cudaMemoryTypeDevice);
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  const Lock held = lock();
  drain_all();
  for (size_t done = 0; done < bytes;) {  // what several calls have mapped
    const size_t part = remove_range(pointer(address + done), cudaMemoryTypeDevice);
    if (part == 0) return CUDA_ERROR_INVALID_VALUE;
    if (!map_nothing(address + done, part)) return CUDA_ERROR_INVALID_VALUE;
    mapped.erase(address + done);
    forget_range(pointer(address + done));
    done += part;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access,
                        size_t count) {
  const Lock held = lock();
  bool whole = true;
  if (type_of(pointer(address), bytes, whole) != cudaMemoryTypeDevice || !whole || count != 1 ||
      access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
    return CUDA_ERROR_INVALID_VALUE;
  if (access->location.id != 0) return CUDA_ERROR_INVALID_DEVICE;
  for (auto next = mapped.lower_bound(address);
       next != mapped.end() && next->first < address + bytes; ++next)
    open_to_device(pointer(next->first), next->second->bytes);
  return CUDA_SUCCESS;
}

#define EMULATED_RESULTS(X)                              \
  X(CUDA_SUCCESS, "no error")                            \
  X(CUDA_ERROR_INVALID_VALUE, "invalid argument")        \
  X(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")           \
  X(CUDA_ERROR_NOT_INITIALIZED, "initialization error")  \
  X(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal") \
  X(CUDA_ERROR_NOT_SUPPORTED, "operation not supported")

CUresult cuGetErrorName(CUresult error, const char** name) {
#define EMULATED_NAME(value, text) \
  if (error == value) *name = #value;
  *name = nullptr;
  EMULATED_RESULTS(EMULATED_NAME)
#undef EMULATED_NAME
  return *name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
#define EMULATED_TEXT(value, words) \
  if (error == value) *text = words;
  *text = nullptr;
  EMULATED_RESULTS(EMULATED_TEXT)
#undef EMULATED_TEXT
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
#define EMULATED_ENTRY(name) \
  { #name, reinterpret_cast < void*>(&name) }
  static const std::map<std::string, void*> functions = {
      EMULATED_ENTRY(cuGetErrorName),
      EMULATED_ENTRY(cuGetErrorString),
      EMULATED_ENTRY(cuMemAddressReserve),
      EMULATED_ENTRY(cuMemAddressFree),
      EMULATED_ENTRY(cuMemCreate),
      EMULATED_ENTRY(cuMemRelease),
      EMULATED_ENTRY(cuMemMap),
      EMULATED_ENTRY(cuMemUnmap),
      EMULATED_ENTRY(cuMemSetAccess),
      EMULATED_ENTRY(cuMemGetAllocationGranularity)};
#undef EMULATED_ENTRY
  const auto found = functions.find(symbol);
  *function = found == functions.end() ? nullptr : found->second;
  if (result != nullptr)
    *result =
        found == functions.end() ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
