// Memory, copies and queues of a GPU, by the CUDA runtime; of the driver, only what maps memory to
// addresses.
#include <cuda.h>
#include <cuda_runtime.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <utility>

#include "core/forbid.h"
#include "core/gpu.h"
#include "cuda/launch.h"
#include "cuda/queue.h"

namespace llmcore {

namespace cuda {
namespace {

// After these, every call fails.
bool is_final(cudaError_t status) {
  constexpr cudaError_t kFinal[] = {cudaErrorECCUncorrectable, cudaErrorIllegalAddress,
                                    cudaErrorIllegalInstruction, cudaErrorMisalignedAddress,
                                    cudaErrorLaunchFailure};
  return std::find(std::begin(kFinal), std::end(kFinal), status) != std::end(kFinal);
}

__global__ void empty_kernel() {
  take_turn();
}

}  // namespace

std::recursive_mutex& device_turns() {
  static auto& mutex = *new std::recursive_mutex;  // memory is released while the process ends, too
  return mutex;
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string reason = str(what, " failed: ", cudaGetErrorString(status));
  cudaGetLastError();  // not to be told again
  CHECK(!is_final(status), DeviceError, reason,
        "; this process can use the GPU no more: start it again");
  if (status == cudaErrorMemoryAllocation)
    throw OutOfMemory(str("out of memory on the GPU: ", reason,
                          "; use a smaller batch or shorter sequences, or turn recompute on"));
  throw DeviceError(reason);
}

}  // namespace cuda

namespace gpu {
namespace {

using cuda::check, cuda::DeviceTurn;

constexpr int64_t kPieceBytes = int64_t{64} << 20;

// The driver's functions, found at run time: nothing links against it.
struct Driver {
  CUresult (*reserve)(CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long) = nullptr;
  CUresult (*free)(CUdeviceptr, size_t) = nullptr;
  CUresult (*create)(CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*,
                     unsigned long long) = nullptr;
  CUresult (*release)(CUmemGenericAllocationHandle) = nullptr;
  CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle,
                  unsigned long long) = nullptr;
  CUresult (*unmap)(CUdeviceptr, size_t) = nullptr;
  CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) = nullptr;
};

template <class Function>
void find(const char* name, Function& function) {
  constexpr unsigned kVersion = 12000;
  cudaDriverEntryPointQueryResult found{};
  void* address = nullptr;
  check(cudaGetDriverEntryPointByVersion(name, &address, kVersion, cudaEnableDefault, &found),
        name);
  CHECK(found == cudaDriverEntryPointSuccess, DeviceError, "the NVIDIA driver has no ", name,
        ": it needs to be 580 or later");
  function = reinterpret_cast<Function>(address);
}

const Driver& driver() {
  static const Driver functions = [] {
    Driver d;
    find("cuMemAddressReserve", d.reserve);
    find("cuMemAddressFree", d.free);
    find("cuMemCreate", d.create);
    find("cuMemRelease", d.release);
    find("cuMemMap", d.map);
    find("cuMemUnmap", d.unmap);
    find("cuMemSetAccess", d.set_access);
    return d;
  }();
  return functions;
}

void check(CUresult status, const char* what) {
  CHECK(status != CUDA_ERROR_OUT_OF_MEMORY, OutOfMemory, "out of memory on the GPU: ", what,
        " failed; use a smaller batch or shorter sequences, or turn recompute on");
  CHECK(status == CUDA_SUCCESS, DeviceError, what, " failed with error ", static_cast<int>(status));
}

// CUDA does not survive a fork: its calls in the child fail, or never return. What is released
// there was the parent's.
std::atomic<bool> forked{false};

constexpr char kForked[] =
    "this process was forked from one that had used the GPU, which CUDA does not allow; start it "
    "with multiprocessing.get_context('spawn'), or use the GPU in the child alone";

void use(int index) {
  CHECK(!forked, DeviceError, kForked);
  check(cudaSetDevice(index), "cudaSetDevice");
}

CUmemLocation location_of(int index) {
  CUmemLocation location{};
  location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  location.id = index;
  return location;
}

CUdeviceptr address_of(char* base, int64_t offset) {
  return static_cast<CUdeviceptr>(reinterpret_cast<uintptr_t>(base + offset));
}

cudaError_t wait_for_all() {
  const DeviceTurn turn(cuda::device_turns());
  return cudaDeviceSynchronize();
}

// Kernels wait for the one ahead as they were compiled to, whatever the device could do: it may
// have compiled code of an older architecture.
bool overlaps_on(int index) {
  constexpr int kHopper = 9;
  int capability = 0;
  check(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, index),
        "cudaDeviceGetAttribute");
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, cuda::empty_kernel), "cudaFuncGetAttributes");
  return capability >= kHopper && attributes.ptxVersion >= 10 * kHopper;
}

void make_streams(Queue& queue) {
  for (cudaStream_t* stream : {&queue.stream, &queue.side})
    check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate");
}

// Events are of one use: a captured one must not be asked for again.
void wait_for(Queue* later, Queue* earlier) {
  use(later->device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  const cudaError_t recorded = cudaEventRecord(event, earlier->stream);
  const cudaError_t waited =
      recorded == cudaSuccess ? cudaStreamWaitEvent(later->stream, event, 0) : recorded;
  cudaEventDestroy(event);  // once it is no longer needed
  check(waited, "the order of two queues");
  if (later->overlaps) cuda::joined_queue = later;
}

// Blocks that were given back, for who next wants exactly as much: CUDA's own calls wait for the
// device, and a graph that was captured serves as long as addresses stay. Each is of one device, or
// pinned, of none.
class Kept {
 public:
  struct Block {
    int device;
    void* data;
    int64_t bytes;
  };
  static constexpr int kPinned = -1;

  // The latest of that size, or null.
  void* take(int device, int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), [&](const Block& block) {
      return block.device == device && block.bytes == bytes;
    });
    if (found == blocks_.rend()) return nullptr;
    void* const data = found->data;
    blocks_.erase(std::next(found).base());
    allow(data, bytes);
    return data;
  }

  // Of each device it keeps so much memory, and the latest so many blocks.
  void give(const Block& given, int64_t most_bytes) {
    constexpr int64_t kMostBlocks = 32;
    forbid(given.data, given.bytes);
    std::unique_lock<std::mutex> guard(mutex_);
    blocks_.push_back(given);
    int64_t count = 0, bytes = 0;
    std::vector<Block> kept, others;
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      const bool here = block->device == given.device;
      if (here && (++count > kMostBlocks || (bytes += block->bytes) > most_bytes))
        others.push_back(*block);
      else
        kept.push_back(*block);
    }
    blocks_.assign(kept.rbegin(), kept.rend());
    guard.unlock();
    for (const Block& block : others) free(block);
  }

  void clear() {
    std::unique_lock<std::mutex> guard(mutex_);
    const std::vector<Block> blocks = std::exchange(blocks_, {});
    guard.unlock();
    for (const Block& block : blocks) free(block);
  }

 private:
  static void free(const Block& block) {
    allow(block.data, block.bytes);
    if (block.device == kPinned) {
      cudaFreeHost(block.data);
      return;
    }
    cudaSetDevice(block.device);
    cudaFree(block.data);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // the latest last
};

Kept& kept() {
  static auto& blocks = *new Kept;  // memory is released while the process ends, too
  return blocks;
}

// What `call` returns, once more with all memory that is kept where there was too little.
template <class Status, class Call>
Status with_memory(Status too_little, Call call) {
  const Status status = call();
  if (status != too_little) return status;
  cudaGetLastError();
  kept().clear();
  return call();
}

}  // namespace

void* allocate(int index, int64_t bytes) {
  use(index);
  void* data = kept().take(index, bytes);
  if (data == nullptr)
    check(with_memory(cudaErrorMemoryAllocation,
                      [&] { return cudaMalloc(&data, static_cast<size_t>(bytes)); }),
          "cudaMalloc");
  check(cudaMemset(data, 0, static_cast<size_t>(bytes)), "cudaMemset");
  check(wait_for_all(), "cudaMemset");  // before other streams, which do not wait, see it
  return data;
}

void release(int index, void* data, int64_t bytes) {
  if (forked) return;
  constexpr int64_t kShare = 16;  // of the device's memory, as much as may be kept
  size_t free = 0, total = 0;
  cudaSetDevice(index);
  wait_for_all();  // as cudaFree() does: for work that still uses it
  cudaMemGetInfo(&free, &total);
  kept().give({index, data, bytes}, static_cast<int64_t>(total) / kShare);
}

int64_t free_memory(int index) {
  use(index);
  kept().clear();
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

void* allocate_pinned(int64_t bytes) {
  CHECK(!forked, DeviceError, kForked);
  void* data = kept().take(Kept::kPinned, bytes);
  if (data == nullptr)
    check(with_memory(cudaErrorMemoryAllocation,
                      [&] { return cudaMallocHost(&data, static_cast<size_t>(bytes)); }),
          "cudaMallocHost");
  return data;
}

void release_pinned(void* data, int64_t bytes) {
  if (forked) return;
  constexpr int64_t kMost = int64_t{64} << 20;
  kept().give({Kept::kPinned, data, bytes}, kMost);
}

Range::Range(int index) : index_(index), piece_bytes_(kPieceBytes) {
  use(index);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  bytes_ = static_cast<int64_t>(total) / piece_bytes_ * piece_bytes_;
  CUdeviceptr base = 0;
  check(driver().reserve(&base, static_cast<size_t>(bytes_), 0, 0, 0), "cuMemAddressReserve");
  base_ = reinterpret_cast<char*>(static_cast<uintptr_t>(base));
}

Range::~Range() {
  if (forked) return;
  cudaSetDevice(index_);
  wait_for_all();
  unmap(low_, false);
  unmap(high_, true);
  driver().free(address_of(base_, 0), static_cast<size_t>(bytes_));
}

void Range::map(std::vector<Piece>& pieces, int64_t offset) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = location_of(index_);
  const auto size = static_cast<size_t>(piece_bytes_);
  CUmemGenericAllocationHandle piece = 0;
  check(with_memory(CUDA_ERROR_OUT_OF_MEMORY,
                    [&] { return driver().create(&piece, size, &properties, 0); }),
        "cuMemCreate");
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const CUdeviceptr address = address_of(base_, offset);
  CUresult status = driver().map(address, size, 0, piece, 0);
  if (status == CUDA_SUCCESS) status = driver().set_access(address, size, &access, 1);
  if (status != CUDA_SUCCESS) driver().release(piece);
  check(status, "cuMemMap");
  pieces.push_back(piece);
}

void Range::unmap(std::vector<Piece>& pieces, bool from_top) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto before = static_cast<int64_t>(i) * piece_bytes_;
    const int64_t offset = from_top ? bytes_ - before - piece_bytes_ : before;
    driver().unmap(address_of(base_, offset), static_cast<size_t>(piece_bytes_));
    driver().release(pieces[i]);
  }
  pieces.clear();
}

void Range::back(int64_t low, int64_t high) {
  const auto mapped = [&](const std::vector<Piece>& pieces) {
    return static_cast<int64_t>(pieces.size()) * piece_bytes_;
  };
  if (low <= mapped(low_) && high <= mapped(high_)) return;
  use(index_);
  while (mapped(low_) < low && mapped(low_) + mapped(high_) < bytes_) map(low_, mapped(low_));
  while (mapped(high_) < high && mapped(low_) + mapped(high_) < bytes_)
    map(high_, bytes_ - mapped(high_) - piece_bytes_);
}

void Range::trim() {
  use(index_);
  check(wait_for_all(), "cudaDeviceSynchronize");
  unmap(low_, false);
  unmap(high_, true);
}

// Queues live as long as the process: when it ends the driver may be gone before they could be.
Queue* queue_of(int index) {
  CHECK(!forked, DeviceError, kForked);
  static std::mutex mutex;
  static std::vector<Queue*> queues;
  const std::lock_guard<std::mutex> guard(mutex);
  for (Queue* queue : queues)
    if (queue->device == index) return queue;
  use(index);
  if (queues.empty()) pthread_atfork(nullptr, nullptr, [] { forked = true; });
  auto queue = std::make_unique<Queue>();
  queue->device = index;
  make_streams(*queue);
  queue->overlaps = overlaps_on(index);
  queues.push_back(queue.get());
  return queue.release();
}

void copy(Queue* queue, void* to, const void* from, int64_t bytes) {
  use(queue->device);
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, queue->stream),
        "copying to or from the GPU");
}

void fill_zeros(Queue* queue, void* data, int64_t bytes) {
  use(queue->device);
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), queue->stream), "cudaMemset");
}

void wait(Queue* queue) {
  use(queue->device);
  check(cudaStreamSynchronize(queue->stream), "the work of the GPU");
}

Graph::~Graph() {
  clear();
}

void Graph::clear() {
  if (executable_ != nullptr && !forked)
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  executable_ = nullptr;
}

// On streams of its own: what other threads ask of the device's queue meanwhile is not captured.
void Graph::capture(Queue* queue, const std::function<void(Queue*)>& work) {
  clear();
  use(queue->device);
  const DeviceTurn turn(cuda::device_turns());
  Queue recorder = *queue;
  make_streams(recorder);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  const auto finish = [&] {
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaStreamDestroy(recorder.stream);
    cudaStreamDestroy(recorder.side);
  };
  try {
    check(cudaStreamBeginCapture(recorder.stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    try {
      work(&recorder);
    } catch (...) {
      cudaStreamEndCapture(recorder.stream, &graph);
      throw;
    }
    check(cudaStreamEndCapture(recorder.stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  } catch (...) {
    finish();
    throw;
  }
  finish();
  executable_ = executable;
}

void Graph::launch(Queue* queue) const {
  use(queue->device);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), queue->stream),
        "cudaGraphLaunch");
}

void wait_for_device(int index) {
  use(index);
  check(wait_for_all(), "the work of the GPU");
}

Side::Side(Queue* queue, void* workspace) : queue_(queue), side_(new Queue(*queue)) {
  side_->stream = queue->side;
  side_->workspace = workspace;
  side_->overlaps = false;
}

Side::~Side() {
  delete side_;
}

void Side::follow() {
  side_->products = queue_->products;
  wait_for(side_, queue_);
}

void Side::join() {
  wait_for(queue_, side_);
}

Event::~Event() {
  if (event_ != nullptr && !forked) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Event::record(Queue* queue) {
  use(queue->device);
  if (event_ == nullptr) {
    cudaEvent_t made = nullptr;
    check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreate");
    event_ = made;
  }
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), queue->stream), "cudaEventRecord");
}

void Event::wait() {
  CHECK(!forked, DeviceError, kForked);
  if (event_ != nullptr)
    check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "the work of the GPU");
}

void Event::settle() noexcept {
  if (event_ != nullptr && !forked) cudaEventSynchronize(static_cast<cudaEvent_t>(event_));
}

}  // namespace gpu

}  // namespace llmcore
