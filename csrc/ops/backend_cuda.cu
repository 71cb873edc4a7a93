// The table of CUDA's kernels, and whether this machine can run them.
#include <cuda_runtime.h>

#include "cuda/cublas.h"
#include "cuda/queue.h"
#include "ops/backend.h"

namespace llmcore {

namespace cuda {

extern const MatmulKernels matmul_kernels;
extern const AttentionKernels attention_kernels;
extern const NormKernels norm_kernels;
extern const ActivationKernels activation_kernels;
extern const EmbeddingKernels embedding_kernels;
extern const RopeKernels rope_kernels;
extern const CrossEntropyKernels cross_entropy_kernels;
extern const ElementwiseKernels elementwise_kernels;
extern const OptimizerKernels optimizer_kernels;
extern const PackedKernels packed_kernels;
extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
extern const SamplingKernels sampling_kernels;

}  // namespace cuda

namespace {

constexpr int kLeastDriver = 13000, kLeastCapability = 80;
constexpr int kLeastShared = 160 << 10;  // a block: some kernels take as much

// What is loaded from files is loaded by the CPU, and its ceilings are its own.
const Kernels& table() {
  static const Kernels kernels = {
      .name = "cuda",
      .has_dot = true,
      .matmul = &cuda::matmul_kernels,
      .attention = &cuda::attention_kernels,
      .norm = &cuda::norm_kernels,
      .activation = &cuda::activation_kernels,
      .embedding = &cuda::embedding_kernels,
      .rope = &cuda::rope_kernels,
      .cross_entropy = &cuda::cross_entropy_kernels,
      .elementwise = &cuda::elementwise_kernels,
      .optimizer = &cuda::optimizer_kernels,
      .ceiling = cpu_kernels().ceiling,
      .loading = cpu_kernels().loading,
      .packed = &cuda::packed_kernels,
      .matmul_bfloat16 = &cuda::matmul_bfloat16_kernels,
      .sampling = &cuda::sampling_kernels,
  };
  return kernels;
}

CudaInfo find_info() {
  CudaInfo info;
  int count = 0;
  cudaDriverGetVersion(&info.driver_version);
  cudaRuntimeGetVersion(&info.runtime_version);
  if (info.driver_version >= kLeastDriver && cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) break;  // they are numbered
    info.devices.push_back({.name = properties.name,
                            .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                            .capability = {properties.major, properties.minor},
                            .multiprocessors = properties.multiProcessorCount});
  }
  cudaGetLastError();
  info.library_path = cuda::cublas().path;
  info.library_reason = cuda::cublas().reason;
  return info;
}

std::string find_reason() {
  const CudaInfo& info = cuda_info();
  if (info.driver_version == 0)
    return "there is no NVIDIA driver; install one of version 580 or later, or use device='cpu'";
  if (info.driver_version < kLeastDriver)
    return str("the NVIDIA driver knows CUDA ", info.driver_version / 1000, ".",
               info.driver_version % 1000 / 10,
               ", this build needs 13.0; install driver 580 or later, or use device='cpu'");
  if (info.devices.empty())
    return "no NVIDIA GPU can be used; see whether CUDA_VISIBLE_DEVICES hides it, or use "
           "device='cpu'";
  constexpr char kAdvice[] = " needed; hide it by CUDA_VISIBLE_DEVICES, or use device='cpu'";
  for (size_t index = 0; index < info.devices.size(); ++index) {
    const CudaDevice& device = info.devices[index];
    if (device.capability[0] * 10 + device.capability[1] < kLeastCapability)
      return str(device.name, " has compute capability ", device.capability[0], ".",
                 device.capability[1], ", 8.0 is", kAdvice);
    int shared = 0;
    if (cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                               static_cast<int>(index)) != cudaSuccess ||
        shared < kLeastShared)
      return str(device.name, " has ", shared >> 10, " KiB of shared memory for a block, ",
                 kLeastShared >> 10, " KiB are", kAdvice);
  }
  return info.library_reason;
}

}  // namespace

const CudaInfo& cuda_info() {
  static const CudaInfo info = find_info();
  return info;
}

const Kernels* cuda_kernels() {
  return &table();
}

const std::string& cuda_unavailable_reason() {
  static const std::string reason = find_reason();
  return reason;
}

}  // namespace llmcore
