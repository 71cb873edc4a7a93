// Checks the emulation of CUDA in tests/emulation: that right kernels give right results in every
// order of threads, and that wrong ones are found out.
//
//   g++ -std=gnu++20 -I tests/emulation -I csrc tests/cpp/check_emul*.cpp tests/emulation/*.cpp
//
// With -fsanitize=address, accesses outside of memory are among what is found.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "cuda.h"
#include "cuda/ptx.h"
#include "cuda/shared.h"
#include "on_device.h"

namespace llmcore::checking {
namespace {

constexpr unsigned kAll = 0xffffffffu;
const char* const kOrders[] = {"forward", "backward", "random:1", "random:2", "random:3"};

// Whether something goes wrong in one order at least, as it should.
void expect_somewhere(const std::string& name, const std::function<bool()>& wrong) {
  bool found = false;
  for (const char* order : kOrders) {
    emulation::set_order(order);
    found |= wrong();
  }
  emulation::set_order("forward");
  expect("planted: " + name, found);
}

// In every order.
void expect_fault(const std::string& name, const std::string& words,
                  const std::function<void()>& run) {
  emulation::set_eager(true);
  emulation::throw_faults(true);
  for (const char* order : kOrders) {
    std::string told;
    emulation::set_order(order);
    try {
      run();
    } catch (const emulation::Fault& fault) {
      told = fault.what();
    }
    expect("planted: " + name + " (" + told + ")", told.find(words) != std::string::npos);
  }
  emulation::set_order("forward");
  emulation::throw_faults(false);
  emulation::set_eager(false);
}

// Whether a process that runs this ends with a failure.
bool dies(const std::function<void()>& run) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    run();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0;
}

// ----------------------------------------------------------------------------------- reductions

enum Mistake { kNone, kNoBarrier, kShortShuffle, kLateRow, kShortGuard };

// y[b] = sum of row b of x [rows, cols], through shuffles and a shared array.
template <int kMistake>
__global__ void __launch_bounds__(256) sum_rows(const float* x, float* y, int rows, int cols) {
  __shared__ float sums[8];
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (kMistake == kLateRow ? row > rows : row >= rows) return;
  float sum = 0.0f;
  for (int i = thread; i < cols; i += 256) sum += __ldg(x + int64_t{row} * cols + i);
  for (int step = 16; step > (kMistake == kShortShuffle ? 1 : 0); step /= 2)
    sum += __shfl_xor_sync(kAll, sum, step);
  const int warps = kMistake == kShortGuard ? 7 : 8;
  if (thread % 32 == 0 && thread / 32 < warps) sums[thread / 32] = sum;
  if (kMistake != kNoBarrier) __syncthreads();
  if (thread == 100) {
    sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += sums[i];
    y[row] = sum;
  }
}

template <int kMistake>
bool sums_are_right() {
  const int rows = 5, cols = 1000;
  const Floats x = random_floats(rows * cols);
  Floats wanted(rows);
  for (int i = 0; i < rows * cols; ++i) wanted[i / cols] += x[i];
  const Array<float> from(x), to(rows);
  start(nullptr, rows + 1, 256, 0, sum_rows<kMistake>, from.data, to.data, rows, cols);
  const Floats y = to.read();
  for (int i = 0; i < rows; ++i)
    if (!(std::fabs(y[i] - wanted[i]) < 1e-4f)) return false;
  return true;
}

// Which turn each thread has before and after a barrier.
__global__ void take_turns(int* turns) {
  __shared__ int next;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 5) next = 0;
    __syncthreads();
    turns[round * 64 + static_cast<int>(threadIdx.x)] = atomicAdd(&next, 1);
    __syncthreads();
  }
}

void check_orders() {
  const Array<int> to(128);
  const auto turns = [&](const char* order) {
    emulation::set_order(order);
    start(nullptr, 1, 64, 0, take_turns, to.data);
    return to.read();
  };
  Ints forward(128), backward(128);
  for (int i = 0; i < 128; ++i) {
    forward[i] = i % 64;
    backward[i] = 63 - i % 64;
  }
  const Ints random = turns("random:1");
  expect("orders of threads",
         turns("forward") == forward && turns("backward") == backward &&
             !std::equal(random.begin(), random.begin() + 64, random.begin() + 64) &&
             turns("random:1") == random && turns("random:2") != random);
  emulation::set_order("forward");
}

// Every way of shuffling and voting, in groups of 8 lanes where there are groups.
__global__ void shuffle(int* y) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* out = y + threadIdx.x * 8;
  out[0] = __shfl_sync(kAll, lane, 3, 8);
  out[1] = __shfl_up_sync(kAll, lane, 2, 8);
  out[2] = __shfl_down_sync(kAll, lane, 2, 8);
  out[3] = static_cast<int>(__shfl_xor_sync(kAll, 1.5 * lane, 5));
  out[4] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  out[5] = __any_sync(kAll, lane == 31) + 2 * __all_sync(kAll, lane < 31);
  if (lane >= 16) out[6] = __shfl_sync(0xffff0000u, lane, 20);
  out[7] = __syncthreads_count(lane < 5) + 1000 * __syncthreads_or(lane == 40) +
           2000 * __syncthreads_and(lane < 32);
}

void check_shuffles() {
  const Array<int> to(64 * 8);
  start(nullptr, 1, 64, 0, shuffle, to.data);
  const Ints y = to.read();
  bool good = true;
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, group = lane / 8 * 8;
    const int* out = y.data() + i * 8;
    good &= out[0] == group + 3 && out[1] == (lane - 2 < group ? lane : lane - 2) &&
            out[2] == (lane + 2 > group + 7 ? lane : lane + 2) &&
            out[3] == static_cast<int>(1.5 * (lane ^ 5)) && out[4] == 0x49249249 && out[5] == 1 &&
            (lane < 16 || out[6] == 20) && out[7] == 2010;
  }
  expect("shuffles and votes", good);
}

__global__ void count(unsigned* counter, int* last) {
  const unsigned ticket = atomicAdd(counter, 1u);
  if (ticket == gridDim.x * blockDim.x - 1) *last = 1;
  atomicMax(last + 1, static_cast<int>(threadIdx.x));
  atomicCAS(counter + 1, 0u, 7u);
}

void check_atomics() {
  const Array<unsigned> counter(std::vector<unsigned>{0, 0});
  const Array<int> last(Ints{0, 0});
  start(nullptr, 3, 100, 0, count, counter.data, last.data);
  expect("atomics", counter.read() == std::vector<unsigned>{300, 7} && last.read() == Ints{1, 99});
}

// --------------------------------------------------------------------------- asynchronous copies

// Two groups; waits until `kLeft` of them may be missing, and reads the first or the second.
template <int kLeft>
__global__ void copy_async(const float4* x, float4* y, bool second, bool valid) {
  __shared__ float4 tile[64];
  const int thread = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    cuda::cp_async16(tile + group * 32 + thread, x + group * 32 + thread, valid);
    cuda::cp_async_commit();
  }
  if (kLeft < 2) cuda::cp_async_wait<kLeft>();
  __syncthreads();
  y[31 - thread] = tile[second * 32 + 31 - thread];
}

template <int kLeft>
bool copies(bool second, bool valid) {
  const Floats x = random_floats(256);
  const Array<float> from(x), to(128);
  start(nullptr, 1, 32, 0, copy_async<kLeft>, reinterpret_cast<const float4*>(from.data),
        reinterpret_cast<float4*>(to.data), second, valid);
  Floats wanted(x.begin() + second * 128, x.begin() + second * 128 + 128);
  if (!valid) wanted.assign(128, 0.0f);
  return to.read() == wanted;
}

// ------------------------------------------------------------------------------ streams, graphs

__global__ void add(float* y, const float* x, float value, int n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < static_cast<unsigned>(n)) y[i] = x[i] + value;
}

struct Streams {
  cudaStream_t a, b;
  cudaEvent_t event, end;

  Streams() {
    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreate(&event);
    cudaEventCreate(&end);
  }
  ~Streams() {
    cudaEventDestroy(event);
    cudaEventDestroy(end);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
  }
  Streams(const Streams&) = delete;
};

__global__ void follow(float* y, bool forgets) {
  if (!forgets || threadIdx.x != 3) cuda::wait_for_kernel_ahead();
  y[threadIdx.x] = 1.0f;
}

// A kernel that may start before the one ahead has ended.
void start_early(float* y, bool forgets, cudaStream_t stream = nullptr) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = 8;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, follow, y, forgets);
}

// One stream writes what the other reads, which waits for it or forgets to.
bool dependency_holds(bool waits) {
  const Streams streams;
  const Array<float> x(Floats(100, 1.0f)), y(100), z(100);
  start(streams.a, 1, 128, 0, add, y.data, x.data, 1.0f, 100);
  cudaEventRecord(streams.event, streams.a);
  if (waits) cudaStreamWaitEvent(streams.b, streams.event);
  start(streams.b, 1, 128, 0, add, z.data, y.data, 1.0f, 100);
  cudaStreamSynchronize(streams.b);
  return z.read() == Floats(100, 3.0f);
}

// Memory that is not pinned is copied, and changed before or after somebody has waited.
bool copy_holds(bool waits) {
  const Streams streams;
  const Array<float> x(8);
  Floats from(8, 1.0f);
  cudaMemcpyAsync(x.data, from.data(), 32, cudaMemcpyHostToDevice, streams.a);
  if (waits) cudaStreamSynchronize(streams.a);
  from.assign(8, 2.0f);
  cudaStreamSynchronize(streams.a);
  return x.read() == Floats(8, 1.0f);
}

// The default stream waits for a stream, and the stream for it, unless the stream is not blocking.
bool default_stream_waits(unsigned flags) {
  const Array<float> x(Floats(8, 1.0f));
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, flags);
  float y = 0.0f;
  start(stream, 1, 8, 0, add, x.data, static_cast<const float*>(x.data), 1.0f, 8);
  cudaMemcpy(&y, x.data, 4, cudaMemcpyDeviceToHost);
  bool good = y == 2.0f;
  cudaMemset(x.data, 0, 32);
  start(stream, 1, 8, 0, add, x.data, static_cast<const float*>(x.data), 1.0f, 8);
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  return good && x.read()[0] == 1.0f;
}

void check_streams() {
  const Streams streams;
  const Array<float> x(Floats(100, 1.0f));
  float* pinned = nullptr;
  cudaMallocHost(&pinned, 400);
  pinned[0] = -1.0f;
  cudaEventRecord(streams.event, streams.a);
  start(streams.a, 1, 128, 0, add, x.data, x.data, 1.0f, 100);
  cudaMemcpyAsync(pinned, x.data, 400, cudaMemcpyDeviceToHost, streams.a);
  cudaEventRecord(streams.end, streams.a);
  expect("work waits", pinned[0] == -1.0f && cudaStreamQuery(streams.a) == cudaErrorNotReady);
  float milliseconds = -1.0f;
  expect("no time yet",
         cudaEventElapsedTime(&milliseconds, streams.event, streams.end) == cudaErrorNotReady);
  cudaEventSynchronize(streams.end);
  expect("work is done", pinned[0] == 2.0f && cudaStreamQuery(streams.a) == cudaSuccess);
  cudaEventElapsedTime(&milliseconds, streams.event, streams.end);
  expect("time passes", milliseconds >= 0.0f);
  cudaPointerAttributes host, device, other;
  cudaPointerGetAttributes(&host, pinned + 1);
  cudaPointerGetAttributes(&device, x.data + 1);
  cudaPointerGetAttributes(&other, &streams);
  expect("kinds of memory", host.type == cudaMemoryTypeHost &&
                                device.type == cudaMemoryTypeDevice &&
                                other.type == cudaMemoryTypeUnregistered);
  expect("a copy leaves its array",
         cudaMemcpy(x.data + 1, x.data, 400, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  expect("a host pointer is none of the device's",
         cudaMemcpy(pinned, x.data, 400, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  cudaFreeHost(pinned);
  cudaGetLastError();
}

// y = x + 1 and z = x + 10 in streams of their own, then z + 100, as a graph that runs twice.
void check_graphs() {
  const Streams streams;
  const Array<float> x(Floats(8, 1.0f)), y(8), z(8);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamBeginCapture(streams.a, cudaStreamCaptureModeGlobal);
  cudaEventRecord(streams.event, streams.a);
  cudaStreamWaitEvent(streams.b, streams.event);
  start(streams.b, 1, 8, 0, add, z.data, x.data, 10.0f, 8);
  start(streams.a, 1, 8, 0, add, y.data, x.data, 1.0f, 8);
  cudaEventRecord(streams.end, streams.b);
  cudaStreamWaitEvent(streams.a, streams.end);
  start(streams.a, 1, 8, 0, add, z.data, z.data, 100.0f, 8);
  expect("capture ends", cudaStreamEndCapture(streams.a, &graph) == cudaSuccess);
  size_t nodes = 0;
  cudaGraphGetNodes(graph, nullptr, &nodes);
  cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  Floats wanted = {111.0f, 105.0f};
  for (int run = 0; run < 2; ++run) {
    cudaGraphLaunch(exec, streams.a);
    cudaStreamSynchronize(streams.a);
    expect("a graph runs", nodes == 3 && z.read() == Floats(8, wanted[run]) &&
                               y.read() == Floats(8, wanted[run] - 109.0f));
    const Floats next(8, -5.0f);
    cudaMemcpy(x.data, next.data(), 32, cudaMemcpyHostToDevice);
  }
  cudaGraphExecDestroy(exec);

  cudaStreamBeginCapture(streams.a, cudaStreamCaptureModeGlobal);
  float* none = nullptr;
  expect("no allocation in a graph", cudaMalloc(&none, 4) == cudaErrorStreamCaptureUnsupported);
  expect("nor after it",
         cudaStreamEndCapture(streams.a, &graph) == cudaErrorStreamCaptureInvalidated);
  cudaStreamBeginCapture(streams.a, cudaStreamCaptureModeGlobal);
  cudaEventRecord(streams.event, streams.a);
  cudaStreamWaitEvent(streams.b, streams.event);
  start(streams.b, 1, 8, 0, add, z.data, x.data, 10.0f, 8);
  expect("a fork without a join",
         cudaStreamEndCapture(streams.a, &graph) == cudaErrorStreamCaptureUnjoined);
  cudaGetLastError();
}

// ------------------------------------------------------------------------------- virtual memory

template <class Function>
Function* entry(Function*, const char* name) {
  void* found = nullptr;
  cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault);
  return reinterpret_cast<Function*>(found);
}
#define ENTRY(name) entry(&name, #name)

void check_virtual_memory() {
  const CUmemAllocationProp properties{.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                       .requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE,
                                       .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0},
                                       .win32HandleMetaData = nullptr,
                                       .allocFlags = {}};
  const CUmemAccessDesc access{properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  size_t free_before = 0, free_after = 0, total = 0, piece = 0;
  cudaMemGetInfo(&free_before, &total);
  ENTRY(cuMemGetAllocationGranularity)(&piece, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  CUdeviceptr base = 0;
  bool good = ENTRY(cuMemAddressReserve)(&base, 4 * piece, 0, 0, 0) == CUDA_SUCCESS;
  for (int i = 0; i < 2; ++i) {
    CUmemGenericAllocationHandle handle = 0;
    good &= ENTRY(cuMemCreate)(&handle, piece, &properties, 0) == CUDA_SUCCESS;
    good &= ENTRY(cuMemMap)(base + i * piece, piece, 0, handle, 0) == CUDA_SUCCESS;
    good &= ENTRY(cuMemSetAccess)(base + i * piece, piece, &access, 1) == CUDA_SUCCESS;
    good &= ENTRY(cuMemRelease)(handle) == CUDA_SUCCESS;
  }
  float* across = reinterpret_cast<float*>(base + piece) - 50;
  cudaMemset(across, 0, 400);
  start(nullptr, 1, 128, 0, add, across, static_cast<const float*>(across), 2.0f, 100);
  Floats values(100);
  cudaMemcpy(values.data(), across, 400, cudaMemcpyDeviceToHost);
  cudaMemGetInfo(&free_after, &total);
  good &= values == Floats(100, 2.0f) && free_after == free_before - 2 * piece;
  good &= ENTRY(cuMemUnmap)(base, 2 * piece) == CUDA_SUCCESS;
  good &= ENTRY(cuMemAddressFree)(base, 4 * piece) == CUDA_SUCCESS;
  cudaMemGetInfo(&free_after, &total);
  expect("virtual memory", good && free_before == free_after);
}

// -------------------------------------------------------------------------------- shared memory

template <int>
__global__ void use_shared(float* y, bool writes) {
  __shared__ float fixed[32];
  float* sized = cuda::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  if (writes) fixed[i] = sized[i] = 1.0f;
  y[i] = sized[i];
  y[32 + i] = fixed[i];
}

void check_shared_memory() {
  const Array<float> y(64);
  start(nullptr, 1, 32, 128, use_shared<0>, y.data, true);
  expect("shared memory", y.read() == Floats(64, 1.0f));
  start(nullptr, 1, 32, 128, use_shared<0>, y.data, false);
  expect("planted: dynamic shared memory that nobody wrote", std::isnan(y.read()[7]));
  expect("planted: shared memory that nobody wrote",
         std::isnan(y.read()[39]) || emulation::kAddressSanitizer);  // which leaves it as it is
  constexpr size_t kFixed = 128;                                     // use_shared's own
  const auto run = [&](auto kernel, size_t bytes) {
    return start(nullptr, 1, 32, bytes, kernel, y.data, true);
  };
  expect("planted: too much shared memory",
         run(use_shared<0>, (48 << 10) - kFixed) == cudaSuccess &&
             run(use_shared<0>, (48 << 10) - kFixed + 1) == cudaErrorInvalidValue);
  const auto ask = [](size_t bytes) {
    return cudaFuncSetAttribute(use_shared<1>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes));
  };
  constexpr size_t kMost = (163 << 10) - kFixed;
  expect("much shared memory",
         ask(kMost) == cudaSuccess && run(use_shared<1>, kMost) == cudaSuccess);
  expect("more than a block can have", ask(kMost + 1) == cudaErrorInvalidValue);
  expect("too many threads",
         start(nullptr, 1, 1025, 0, use_shared<0>, y.data, false) == cudaErrorInvalidConfiguration);
  cudaGetLastError();
}

// ------------------------------------------------------------------------------- planted faults

__global__ void diverge() {
  if (threadIdx.x >= 60) return;
  __syncthreads();
}
__global__ void leave_warp(float* y) {
  if (threadIdx.x >= 16) return;
  y[threadIdx.x] = __shfl_xor_sync(kAll, y[threadIdx.x], 1);
}
__global__ void mix_warp(float* y) {
  if (threadIdx.x < 16)
    y[threadIdx.x] = __shfl_xor_sync(kAll, y[threadIdx.x], 1);
  else
    __syncwarp();
}
__global__ void misname(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xffffu, y[threadIdx.x], 1);
}

void check_planted() {
  expect("planted: a call in a forked process", dies([] { cudaFree(nullptr); }));
  emulation::survive_forks();
  expect("a forked process that survives", !dies([] { cudaFree(nullptr); }));
  expect_somewhere("a missing barrier", [] { return !sums_are_right<kNoBarrier>(); });
  expect_somewhere("a shuffle too few", [] { return !sums_are_right<kShortShuffle>(); });
  if (emulation::kAddressSanitizer)
    expect("planted: a row too many", dies([] { sums_are_right<kLateRow>(); }));
  else
    expect_somewhere("a guard off by one", [] { return !sums_are_right<kShortGuard>(); });
  expect_somewhere("no wait for a copy", [] { return !copies<2>(false, true); });
  expect_somewhere("a wait for too few copies", [] { return !copies<1>(true, true); });
  expect_somewhere("memory changed while it is copied", [] { return !copy_holds(false); });
  expect_somewhere("no dependency", [] { return !dependency_holds(false); });
  expect_somewhere("no synchronization",
                   [] { return !default_stream_waits(cudaStreamNonBlocking); });
  const Array<float> y(Floats(64, 1.0f));
  expect_fault("a divergent barrier", "60 of 64 threads wait at __syncthreads, 4 have ended",
               [] { start(nullptr, 1, 64, 0, diverge); });
  expect_fault("lanes that have left",
               "0x0000ffff of warp 0 wait at a shuffle for lanes 0xffff0000",
               [&] { start(nullptr, 1, 32, 0, leave_warp, y.data); });
  expect_fault("lanes elsewhere", "wait at __syncwarp for lanes 0x0000ffff",
               [&] { start(nullptr, 1, 32, 0, mix_warp, y.data); });
  expect_fault("a mask of others", "does not name its own lane",
               [&] { start(nullptr, 1, 32, 0, misname, y.data); });
  expect_fault("a thread that starts early and does not wait",
               "without waiting for the kernel ahead", [&] { start_early(y.data, true); });
  const auto start_early_behind = [&](bool event_alone) {
    const Streams streams;
    cudaEventRecord(streams.event, streams.a);
    cudaStreamWaitEvent(streams.b, streams.event);
    cudaEventRecord(streams.end, streams.b);
    if (!event_alone) start(streams.b, 1, 8, 0, add, y.data, y.data, 1.0f, 8);
    start_early(y.data, false, streams.b);
  };
  expect_fault("an early start behind another stream's event",
               "may start before what its stream is to wait for",
               [&] { start_early_behind(true); });
  start_early_behind(false);
  start_early(y.data, false);
  expect("a kernel that starts early", cudaDeviceSynchronize() == cudaSuccess);
  expect("planted: the host reads the device's memory",
         dies([&] { std::printf("%g", static_cast<double>(*y.data)); }));
  expect("a fault ends the program", dies([] {
           start(nullptr, 1, 64, 0, diverge);
           cudaDeviceSynchronize();
         }));
}

void check_all() {
  expect("sums of rows", sums_are_right<kNone>());
  check_shuffles();
  check_atomics();
  check_fragments();
  expect("asynchronous copies", copies<0>(true, true) && copies<1>(false, true));
  expect("copies of nothing", copies<0>(true, false));
  expect("streams that wait", dependency_holds(true));
  expect("copies of what is not pinned", copy_holds(true));
  expect("the default stream waits", default_stream_waits(cudaStreamDefault));
  check_streams();
  check_graphs();
  check_virtual_memory();
  check_shared_memory();
  check_products();
}

}  // namespace
}  // namespace llmcore::checking

int main() {
  using namespace llmcore::checking;
  for (const char* order : kOrders) {
    emulation::set_order(order);
    check_all();
  }
  check_orders();
  check_planted();
  std::printf("emulation: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
