// cuBLASLt's descriptions, its rules about what goes together, and its choice of algorithms.
#include "cublasLt.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "memory.h"
#include "product.h"
#include "settings.h"
#include "streams.h"

struct cublasLtContext {};

struct cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace_bytes = 0;
};

namespace emulation {
namespace {

using Desc = cublasLtMatmulDescOpaque_t;

// The i-th algorithm wants so much more memory than the one before; one turns out not to fit.
constexpr uint64_t kWorkspaceStep = 1 << 20;
constexpr int kAlgorithms = 5, kUnfit = 1;

template <class T>
cublasStatus_t set(T& field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, sizeof field);
  return CUBLAS_STATUS_SUCCESS;
}

bool good(const Layout& layout) {
  const uint64_t across = layout.order == CUBLASLT_ORDER_COL ? layout.rows : layout.cols;
  return layout.rows > 0 && layout.cols > 0 && layout.batch_count > 0 &&
         layout.ld >= static_cast<int64_t>(across);
}

// The table of types in cuBLASLt's documentation, as far as it is used.
bool types_go_together(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                       const Layout& d) {
  if (a.type != b.type || c.type != d.type) return false;
  if (desc.compute == CUBLAS_COMPUTE_32I)
    return desc.scale == CUDA_R_32I && a.type == CUDA_R_8I && d.type == CUDA_R_32I;
  if (desc.scale != CUDA_R_32F) return false;
  if (a.type == CUDA_R_16BF) return d.type == CUDA_R_16BF || d.type == CUDA_R_32F;
  return a.type == CUDA_R_32F && d.type == CUDA_R_32F;
}

// Integer tensor cores want a transposed A, a plain B, and whole words.
bool integers_fit(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
  return desc.transpose_a != CUBLAS_OP_N && desc.transpose_b == CUBLAS_OP_N &&
         desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT && a.rows % 4 == 0 && d.rows % 4 == 0 &&
         a.ld % 4 == 0 && b.ld % 4 == 0 && a.order == CUBLASLT_ORDER_COL &&
         b.order == CUBLASLT_ORDER_COL && d.order == CUBLASLT_ORDER_COL;
}

cublasStatus_t check_epilogue(const Desc& desc, const Layout& d) {
  constexpr uint32_t kKnown[] = {
      CUBLASLT_EPILOGUE_DEFAULT,     CUBLASLT_EPILOGUE_RELU,   CUBLASLT_EPILOGUE_BIAS,
      CUBLASLT_EPILOGUE_RELU_BIAS,   CUBLASLT_EPILOGUE_GELU,   CUBLASLT_EPILOGUE_GELU_AUX,
      CUBLASLT_EPILOGUE_GELU_BIAS,   CUBLASLT_EPILOGUE_DGELU,  CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
      CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB};
  if (std::ranges::find(kKnown, desc.epilogue) == std::end(kKnown) ||
      (desc.bias_type != -1 && desc.bias_type != d.type))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!(desc.epilogue & kAux)) return CUBLAS_STATUS_SUCCESS;
  if (desc.aux_ld % 8 != 0 || desc.aux_ld < static_cast<int64_t>(d.rows))
    return CUBLAS_STATUS_INVALID_VALUE;
  return (desc.aux_type == -1 || desc.aux_type == d.type) && d.order == CUBLASLT_ORDER_COL
             ? CUBLAS_STATUS_SUCCESS
             : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t check(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d) {
  const bool transpose_a = desc.transpose_a != CUBLAS_OP_N;
  const bool transpose_b = desc.transpose_b != CUBLAS_OP_N;
  const uint64_t m = transpose_a ? a.cols : a.rows, k = transpose_a ? a.rows : a.cols;
  const uint64_t n = transpose_b ? b.rows : b.cols, b_k = transpose_b ? b.cols : b.rows;
  for (const Layout* layout : {&a, &b, &c, &d})
    if (!good(*layout) || layout->batch_count != d.batch_count) return CUBLAS_STATUS_INVALID_VALUE;
  if (k != b_k || d.rows != m || d.cols != n || c.rows != m || c.cols != n)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!types_go_together(desc, a, b, c, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (const cublasStatus_t status = check_epilogue(desc, d)) return status;
  if (desc.compute == CUBLAS_COMPUTE_32I && !integers_fit(desc, a, b, d))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

// What an algorithm was found for; shapes may differ from it.
uint64_t kind(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
  uint64_t kind = desc.epilogue;
  for (const int32_t part : {desc.compute, desc.transpose_a, desc.transpose_b, a.type, a.order,
                             b.order, d.type, d.order})
    kind = kind * 101 + static_cast<uint64_t>(part);
  return kind;
}

cublasLtMatmulAlgo_t algorithm(int i, uint64_t kind) {
  return {{static_cast<uint64_t>(i) + 1, i * kWorkspaceStep, kind}};
}

// Whatever is not the device's, or leaves its allocation, would be found out late on a GPU.
void check_memory(const char* name, const void* data, int64_t first, int64_t last, size_t bytes) {
  bool inside = true;
  const char* start = static_cast<const char*>(data) + first * static_cast<int64_t>(bytes);
  const auto type = type_of(start, static_cast<size_t>(last - first + 1) * bytes, inside);
  if (type == cudaMemoryTypeUnregistered)
    fail(std::string("cublasLtMatmul: ") + name + " is not in the device's memory");
  if (!inside) fail(std::string("cublasLtMatmul: ") + name + " leaves its allocation");
}

void check_memory(const char* name, const void* data, const Layout& layout) {
  const auto rows = static_cast<int64_t>(layout.rows), cols = static_cast<int64_t>(layout.cols);
  const int64_t batches = (layout.batch_count - 1) * layout.batch_stride;
  const int64_t last = layout.order == CUBLASLT_ORDER_COL ? (cols - 1) * layout.ld + rows - 1
                                                          : (rows - 1) * layout.ld + cols - 1;
  check_memory(name, data, std::min<int64_t>(batches, 0), std::max<int64_t>(batches, 0) + last,
               element_bytes(layout.type));
}

void check_memory(const Product& product, bool reads_c) {
  const Layout& d = product.d_layout;
  check_memory("a", product.a, product.a_layout);
  check_memory("b", product.b, product.b_layout);
  check_memory("d", product.d, d);
  if (reads_c) check_memory("c", product.c, product.c_layout);
  const auto rows = static_cast<int64_t>(d.rows), cols = static_cast<int64_t>(d.cols);
  if (product.has(kBias | kBiasGradient | kSumA | kSumB))
    check_memory("the bias", product.desc.bias, 0, (product.has(kSumB) ? cols : rows) - 1,
                 element_bytes(product.desc.bias_type));
  if (product.has(kAux))
    check_memory("the auxiliary matrix", product.desc.aux, 0,
                 (cols - 1) * product.desc.aux_ld + rows - 1, element_bytes(product.desc.aux_type));
}

}  // namespace
}  // namespace emulation

using namespace emulation;

#define EMULATED_STATUSES(X)                                                    \
  X(CUBLAS_STATUS_SUCCESS, "success")                                           \
  X(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized")           \
  X(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed")               \
  X(CUBLAS_STATUS_INVALID_VALUE, "an invalid value was passed in")              \
  X(CUBLAS_STATUS_ARCH_MISMATCH, "the device lacks a feature that is needed")   \
  X(CUBLAS_STATUS_MAPPING_ERROR, "access to the GPU's memory failed")           \
  X(CUBLAS_STATUS_EXECUTION_FAILED, "the function failed to launch on the GPU") \
  X(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed")               \
  X(CUBLAS_STATUS_NOT_SUPPORTED, "the functionality is not supported")          \
  X(CUBLAS_STATUS_LICENSE_ERROR, "the license check failed")

const char* cublasLtGetStatusName(cublasStatus_t status) {
#define EMULATED_NAME(name, text) \
  if (status == name) return #name;
  EMULATED_STATUSES(EMULATED_NAME)
#undef EMULATED_NAME
  return "unknown status";
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
#define EMULATED_TEXT(name, text) \
  if (status == name) return text;
  EMULATED_STATUSES(EMULATED_TEXT)
#undef EMULATED_TEXT
  return "unknown status";
}

size_t cublasLtGetVersion() {
  return 130100;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  *layout = new Layout{.type = type, .rows = rows, .cols = cols, .ld = ld};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return set(layout->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return set(layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return set(layout->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return set(layout->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return set(layout->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return set(layout->batch_count, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return set(layout->batch_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new Desc{.compute = compute, .scale = scale};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return set(desc->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return set(desc->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return set(desc->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(desc->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(desc->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return set(desc->bias_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(desc->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return set(desc->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return set(desc->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return set(desc->aux_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return set(desc->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return set(desc->sm_count, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
    return set(preference->workspace_bytes, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* returned) {
  *returned = 0;
  if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (const cublasStatus_t status = check(*desc, *a, *b, *c, *d)) return status;
  for (int i = 0; i < std::min(requested, kAlgorithms); ++i) {
    const uint64_t workspace = i * kWorkspaceStep;
    if (workspace > preference->workspace_bytes) break;
    auto& result = results[(*returned)++];
    result = {};
    result.state = i == kUnfit ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    if (i == kUnfit) continue;
    result.algo = algorithm(i, kind(*desc, *a, *b, *d));
    result.workspaceSize = workspace;
    result.wavesCount = 1.0f;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  const Lock held = lock();
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (const auto status = check(*desc, *a_layout, *b_layout, *c_layout, *d_layout)) return status;
  const uint64_t asked = kind(*desc, *a_layout, *b_layout, *d_layout);
  const cublasLtMatmulAlgo_t chosen = algo != nullptr ? *algo : algorithm(0, asked);
  const uint64_t needed = chosen.data[1];
  if (chosen.data[0] == 0 || chosen.data[2] != asked) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (needed > workspace_bytes || (needed > 0 && workspace == nullptr))
    return CUBLAS_STATUS_INVALID_VALUE;
  Product product{*desc, *a_layout, *b_layout, *c_layout, *d_layout, a, b, c, d, alpha, beta, 0, 0};
  auto& types = product.desc;
  if (types.bias_type == -1) types.bias_type = d_layout->type;
  if (types.aux_type == -1) types.aux_type = d_layout->type;
  const bool on_host = desc->pointer_mode == CUBLASLT_POINTER_MODE_HOST;
  if (on_host) {
    std::memcpy(&product.alpha_bits, alpha, sizeof product.alpha_bits);
    std::memcpy(&product.beta_bits, beta, sizeof product.beta_bits);
    product.alpha = product.beta = nullptr;
  }
  check_memory(product, !on_host || product.beta_bits != 0);
  if (needed > 0) check_memory("the workspace", workspace, 0, static_cast<int64_t>(needed) - 1, 1);
  // Who else uses the workspace meanwhile shall see it.
  const auto work = [product, workspace, needed] {
    if (needed > 0) std::memset(workspace, 0xff, needed);
    multiply(product);
  };
  return enqueue(stream, work) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                              : CUBLAS_STATUS_EXECUTION_FAILED;
}
