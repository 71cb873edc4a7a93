// Plans of cuBLASLt's products, their choice, and their execution.
#include "cuda/products.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/choices.h"
#include "core/error.h"
#include "core/gpu.h"
#include "core/random.h"
#include "cuda/floats.h"
#include "cuda/launch.h"

namespace llmcore::cuda {
namespace {

constexpr int kBestFew = 8;
// Each of the best few is timed in so many rounds of so many runs; its best round counts.
constexpr int kRounds = 3, kRuns = 5;

// Bits of cublasLtEpilogue_t.
constexpr uint32_t kUsesBias = CUBLASLT_EPILOGUE_BIAS, kUsesAux = 128;
static_assert((CUBLASLT_EPILOGUE_GELU_AUX & kUsesAux) && (CUBLASLT_EPILOGUE_DGELU & kUsesAux));

struct Plan {
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulHeuristicResult_t best[kBestFew] = {};
  int count = 0;  // of them; none: the library has no such product
  int chosen = 0;
  bool settled = false;  // chosen is what it will be
};

}  // namespace

// Of a queue, and so as long as the process. The workspace is that of whatever product runs in it.
struct Products {
  std::mutex mutex;  // plans hold pointers while a product is asked for
  cublasLtHandle_t handle = nullptr;
  Buffer workspace;
  std::string subject, file;  // of the choices; none where no file is to be used
  Choices remembered;
  std::map<ProductKind, Plan> plans;
};

namespace {

std::atomic<bool> tuning{false};
std::atomic<int64_t> timed{0};  // products, since it was turned on

// The file of a GPU's choices, and its first line.
void remember(Products& products, const std::string& gpu) {
  const std::string directory = cache_directory();
  if (directory.empty()) return;
  products.subject =
      str("products of ", gpu, ", cuBLASLt ", cublas().GetVersion(), ", llmcore ", LLMCORE_VERSION);
  std::string name = products.subject;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c) && c != '.'; }, '-');
  products.file = str(directory, "/", name, ".txt");
  products.remembered = read_choices(products.file, products.subject);
}

Products& products_of(const Context& context) {
  static std::mutex mutex;
  Queue& queue = *context.queue;
  {
    const std::lock_guard<std::mutex> guard(mutex);
    if (queue.products) return *queue.products;
  }
  const DeviceTurn turn(device_turns());
  const std::lock_guard<std::mutex> guard(mutex);
  if (queue.products) return *queue.products;
  auto products = std::make_shared<Products>();
  check(cudaSetDevice(queue.device), "cudaSetDevice");
  check(cublas().Create(&products->handle), "cublasLtCreate");
  products->workspace = Buffer(gpu::kWorkspaceBytes, Backing::kMemory, context.device);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, queue.device), "cudaGetDeviceProperties");
  remember(*products, properties.name);
  queue.products = products;
  return *products;
}

int64_t alignment_of(const ProductData& data) {
  uintptr_t bits = 64;  // as the arena's blocks: where one lies must not choose an algorithm
  for (const void* p : {data.a, data.b, data.added, static_cast<const void*>(data.c), data.bias,
                        static_cast<const void*>(data.aux)})
    bits |= reinterpret_cast<uintptr_t>(p);
  return static_cast<int64_t>(bits & -bits);
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_32F;
}

template <class T>
void set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
         const T& value) {
  check(cublas().MatmulDescSetAttribute(description, attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}

void set_pointers(const Plan& plan, const ProductKind& kind, const ProductData& data) {
  if (kind.epilogue & kUsesBias)
    set(plan.description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, data.bias);
  if (kind.epilogue & kUsesAux)
    set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, data.aux);
}

// A row-major matrix [rows, cols] is a column-major one [cols, rows].
cublasLtMatrixLayout_t layout_of(DType dtype, int64_t rows, int64_t cols, int64_t stride,
                                 int64_t batch, bool one) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublas().MatrixLayoutCreate(&layout, type_of(dtype), static_cast<uint64_t>(cols),
                                    static_cast<uint64_t>(rows), stride > 0 ? stride : cols),
        "cublasLtMatrixLayoutCreate");
  const auto set = [&](cublasLtMatrixLayoutAttribute_t attribute, const auto& value) {
    check(cublas().MatrixLayoutSetAttribute(layout, attribute, &value, sizeof(value)),
          "cublasLtMatrixLayoutSetAttribute");
  };
  set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(batch));
  set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, one ? int64_t{0} : rows * cols);
  return layout;
}

// Asks what the library would do, best first. Of addresses it must see the alignment alone.
void find_best_few(const Products& products, Plan& plan, const ProductKind& kind) {
  auto* const somewhere = reinterpret_cast<void*>((uintptr_t{1} << 30) + kind.alignment);
  set_pointers(plan, kind, {.bias = somewhere, .aux = somewhere});
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublas().MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublas().MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
          "cublasLtMatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(gpu::kWorkspaceBytes));
  // Parts of a sum stay float when they are added up.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto side :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(side, static_cast<uint32_t>(kind.alignment));
  const cublasStatus_t status =
      cublas().MatmulAlgoGetHeuristic(products.handle, plan.description, plan.b, plan.a, plan.c,
                                      plan.c, preference, kBestFew, plan.best, &plan.count);
  check(cublas().MatmulPreferenceDestroy(preference), "cublasLtMatmulPreferenceDestroy");
  const bool refused = kind.epilogue != CUBLASLT_EPILOGUE_DEFAULT &&
                       status == CUBLAS_STATUS_INVALID_VALUE;  // what it may say of an epilogue
  if (status != CUBLAS_STATUS_NOT_SUPPORTED && !refused)
    check(status, "cublasLtMatmulAlgoGetHeuristic");
  const auto end = std::remove_if(plan.best, plan.best + plan.count, [](const auto& found) {
    return found.state != CUBLAS_STATUS_SUCCESS;
  });
  plan.count = static_cast<int>(end - plan.best);
}

// C^T = op(B)^T op(A)^T, column-major: the library's first operand is our second.
void run(const Context& context, const Products& products, const Plan& plan,
         const ProductKind& kind, const ProductData& data, int choice) {
  const float alpha = 1.0f, beta = kind.adds ? 1.0f : 0.0f;
  void* const own = context.queue->workspace;
  void* const workspace = own != nullptr ? own : products.workspace.data();
  check(cublas().Matmul(products.handle, plan.description, &alpha, data.b, plan.b, data.a, plan.a,
                        &beta, kind.adds ? data.added : data.c, plan.c, data.c, plan.c,
                        &plan.best[choice].algo, workspace, plan.best[choice].workspaceSize,
                        stream_of(context)),
        "cublasLtMatmul");
}

template <class T>
__global__ void fill_randomly(T* data, int64_t count, uint64_t stream) {
  take_turn();
  const int64_t i = thread_index();
  if (i < count)
    data[i] = from_float<T>(uniform(philox(0, stream, static_cast<uint64_t>(i)).lane[0]) - 0.5f);
}

// Stands in for what a product reads and writes: times must not depend on the data at hand.
class RandomData {
 public:
  RandomData(const Context& context, const ProductKind& kind) : context_(context) {
    const int64_t c = kind.batch * kind.m * std::max(kind.n, kind.c_stride);
    const int64_t a_rows = kind.transpose_a ? kind.k : kind.m;
    const int64_t a_cols = std::max(kind.transpose_a ? kind.m : kind.k, kind.a_stride);
    data.a = make(kind.operands, (kind.one_a ? 1 : kind.batch) * a_rows * a_cols);
    data.b = make(kind.operands, (kind.one_b ? 1 : kind.batch) * kind.k * kind.n);
    data.c = make(kind.result, c);
    data.added = data.c;
    if (kind.epilogue & kUsesBias) data.bias = make(kind.result, kind.n);
    if (kind.epilogue & kUsesAux) data.aux = make(kind.result, c);
  }
  ProductData data;

 private:
  void* make(DType dtype, int64_t count) {
    Buffer buffer(count * dtype_size(dtype), Backing::kMemory, context_.device);
    with_type(dtype, [&](auto tag) {
      using T = decltype(tag);
      launch_each(context_, fill_randomly<T>, count, static_cast<T*>(buffer.data()), count,
                  static_cast<uint64_t>(buffers_.size()));
    });
    buffers_.push_back(std::move(buffer));
    return buffers_.back().data();
  }

  const Context& context_;
  std::vector<Buffer> buffers_;
};

std::string name_of(const ProductKind& kind) {
  return str(
      kind.transpose_a ? "A^T " : "A ", kind.transpose_b ? "B^T" : "B", ", m ", kind.m, ", n ",
      kind.n, ", k ", kind.k, ", ", dtype_name(kind.operands), " to ", dtype_name(kind.result),
      kind.adds ? ", adds" : "", ", epilogue ", static_cast<int>(kind.epilogue), ", batch ",
      kind.batch, kind.one_a ? ", one A" : "", kind.one_b ? ", one B" : "",
      kind.a_stride > 0 ? str(", rows of A ", kind.a_stride) : "",
      kind.c_stride > 0 ? str(", rows of C ", kind.c_stride) : "", ", alignment ", kind.alignment);
}

// Which of the best few takes the least time.
int fastest(const Context& context, const Products& products, const Plan& plan,
            const ProductKind& kind) {
  const RandomData random(context, kind);
  set_pointers(plan, kind, random.data);
  cudaEvent_t start = nullptr, end = nullptr;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  int best = 0;
  float least = 0.0f;
  for (int round = 0; round < kRounds; ++round)
    for (int i = 0; i < plan.count; ++i) {
      if (round == 0) run(context, products, plan, kind, random.data, i);  // loads its code
      check(cudaEventRecord(start, stream_of(context)), "cudaEventRecord");
      for (int r = 0; r < kRuns; ++r) run(context, products, plan, kind, random.data, i);
      check(cudaEventRecord(end, stream_of(context)), "cudaEventRecord");
      check(cudaEventSynchronize(end), "timing a product");
      float time = 0.0f;
      check(cudaEventElapsedTime(&time, start, end), "cudaEventElapsedTime");
      if ((round == 0 && i == 0) || time < least) {
        least = time;
        best = i;
      }
    }
  check(cudaEventDestroy(start), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  return best;
}

// Settles a plan, unless it is to be timed and may not be now.
void choose(const Context& context, Products& products, Plan& plan, const ProductKind& kind,
            bool may_time) {
  const std::string product = name_of(kind);
  const auto remembered = products.remembered.find(product);
  if (remembered != products.remembered.end() && remembered->second < plan.count) {
    plan.chosen = remembered->second;
    plan.settled = true;
    return;
  }
  if (!may_time || products.file.empty() || plan.count == 0) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_of(context), &capture), "cudaStreamIsCapturing");
  if (capture != cudaStreamCaptureStatusNone) return;
  plan.settled = true;
  try {
    plan.chosen = fastest(context, products, plan, kind);
  } catch (const OutOfMemory&) {
    return;
  }
  ++timed;
  products.remembered = read_choices(products.file, products.subject);  // what others found too
  products.remembered[product] = plan.chosen;
  write_choices(products.file, products.subject, products.remembered);
}

// Where it may not be timed now, one that is to be timed is not settled.
const Plan& plan_of(const Context& context, Products& products, const ProductKind& kind,
                    bool may_time) {
  const auto found = products.plans.find(kind);
  if (found != products.plans.end()) {
    if (may_time && !found->second.settled)
      choose(context, products, found->second, kind, may_time);
    return found->second;
  }
  Plan plan;
  check(cublas().MatmulDescCreate(&plan.description, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  const auto operation = [](bool transpose) {
    return static_cast<int32_t>(transpose ? CUBLAS_OP_T : CUBLAS_OP_N);
  };
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSA, operation(kind.transpose_b));
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSB, operation(kind.transpose_a));
  set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(kind.epilogue));
  if (kind.epilogue & kUsesAux) set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kind.n);
  const auto layout = [&](DType dtype, int64_t rows, int64_t cols, bool transposed, int64_t stride,
                          bool one) {
    if (transposed) std::swap(rows, cols);
    return layout_of(dtype, rows, cols, stride, kind.batch, one);
  };
  plan.a = layout(kind.operands, kind.m, kind.k, kind.transpose_a, kind.a_stride, kind.one_a);
  plan.b = layout(kind.operands, kind.k, kind.n, kind.transpose_b, 0, kind.one_b);
  plan.c = layout(kind.result, kind.m, kind.n, false, kind.c_stride, false);
  find_best_few(products, plan, kind);
  choose(context, products, plan, kind, may_time);
  return products.plans.emplace(kind, std::move(plan)).first->second;
}

}  // namespace

bool multiply(const Context& context, const ProductKind& kind, const ProductData& data) {
  Products& products = products_of(context);
  DeviceTurn turn(device_turns(), std::defer_lock);
  if (tuning) turn.lock();
  const std::lock_guard<std::mutex> guard(products.mutex);
  check(cudaSetDevice(context.queue->device), "cudaSetDevice");
  ProductKind aligned = kind;
  aligned.alignment = alignment_of(data);
  const Plan& plan = plan_of(context, products, aligned, turn.owns_lock());
  if (plan.count == 0) return false;
  set_pointers(plan, kind, data);
  run(context, products, plan, kind, data, plan.chosen);
  return true;
}

}  // namespace llmcore::cuda

namespace llmcore::gpu {

int64_t tune_products(bool on) {
  CHECK(!on || !cache_directory().empty(), ConfigError,
        "LLMCORE_CACHE_DIR is off, or there is no home directory: what is timed could not be "
        "remembered");
  cuda::tuning = on;
  return cuda::timed.exchange(0);
}

std::vector<std::pair<std::string, int>> product_choices(int index) {
  std::vector<std::pair<std::string, int>> choices;
  const std::shared_ptr<cuda::Products> products = queue_of(index)->products;
  if (!products) return choices;
  const std::lock_guard<std::mutex> guard(products->mutex);
  for (const auto& [kind, plan] : products->plans)
    choices.emplace_back(cuda::name_of(kind), plan.chosen);
  return choices;
}

}  // namespace llmcore::gpu
