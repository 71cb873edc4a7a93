// Matrix products on CUDA: by cuBLASLt, with what follows a product done by the library where it
// can, else by a pass over C; of few rows by a kernel of ours; sums of columns.
#include "core/error.h"
#include "core/gpu.h"
#include "cuda/launch.h"
#include "cuda/products.h"
#include "cuda/reduce.h"
#include "ops/epilogue_cuda.h"
#include "ops/matmul_few_rows_cuda.h"

namespace llmcore::cuda {
namespace {

int64_t round_up(int64_t x) {
  constexpr int64_t kAlign = 256;
  return blocks_of(x, kAlign) * kAlign;
}

// ---- Rounding of operands

constexpr int kCastCount = kPack<BFloat16>;

__global__ void cast(const float* from, BFloat16* to, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kCastCount;
  if (i >= count) return;
  float x[kCastCount], half[kCastCount / 2];
#pragma unroll
  for (int part = 0; part < kCastCount; part += kCastCount / 2) {
    load_up_to(from + i + part, count - i - part, aligned, half);
#pragma unroll
    for (int j = 0; j < kCastCount / 2; ++j) x[part + j] = half[j];
  }
  store_up_to(to + i, x, count - i, true);
}

// Of a tensor and what lies between its rows.
int64_t elements(const Tensor& tensor, int64_t stride) {
  return stride > 0 ? tensor.rows() * stride : tensor.numel();
}

// `from`, or it rounded to bfloat16 in `to`, which is moved behind it.
const void* narrowed(const Context& context, const Tensor& from, int64_t stride, bool wanted,
                     char*& to) {
  if (!wanted || from.dtype == DType::kBFloat16) return from.data;
  auto* const rounded = reinterpret_cast<BFloat16*>(to);
  const int64_t count = elements(from, stride);
  to += round_up(count * dtype_size(DType::kBFloat16));
  if (count > 0)
    launch_each(context, cast, blocks_of(count, kCastCount), from.f32(), rounded, count,
                packs<float>(from.data, kPack<float>));
  return rounded;
}
int64_t narrowed_bytes(const Tensor& from, int64_t stride, bool wanted) {
  return wanted && from.dtype == DType::kFloat32 ? round_up(elements(from, stride) * 2) : 0;
}

// ---- What follows a product

template <class Sum, class T, int kCount>
__global__ void finish_sums(const Sum* sums, Epilogue to, int64_t count) {
  take_turn();
  const int64_t i = thread_index() * kCount, col = i % to.stride;
  if (i >= count || col >= to.n) return;
  float x[kCount];
  load_elements(sums + i, x);
  finish<T>(to, i, terms_of<T, kCount>(to, i, col), x);
}

// `sums` lie as C does.
void finish_all(const Context& context, const void* sums, DType type, const Epilogue& to,
                const Tensor& c) {
  const int64_t count = elements(c, to.stride);
  with_type(c.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto start = [&]<class Sum>(const Sum* from) {
      if (to.packs<T>() && packs<Sum>(from, kPack<Sum>))
        launch_each(context, finish_sums<Sum, T, kPack<T>>, count / kPack<T>, from, to, count);
      else
        launch_each(context, finish_sums<Sum, T, 1>, count, from, to, count);
    };
    if (type == c.dtype)
      start(static_cast<const T*>(sums));
    else
      start(static_cast<const float*>(sums));
  });
}

// What the library does while it multiplies: its GELU is the one by tanh, of bfloat16 precision.
struct Fusion {
  bool bias;
  Activation activation;
  bool pre_activation, gate;
  cublasLtEpilogue_t epilogue;
};
constexpr Fusion kFusions[] = {
    {true, Activation::kNone, false, false, CUBLASLT_EPILOGUE_BIAS},
    {false, Activation::kRelu, false, false, CUBLASLT_EPILOGUE_RELU},
    {true, Activation::kRelu, false, false, CUBLASLT_EPILOGUE_RELU_BIAS},
    {false, Activation::kGeluTanh, false, false, CUBLASLT_EPILOGUE_GELU},
    {true, Activation::kGeluTanh, false, false, CUBLASLT_EPILOGUE_GELU_BIAS},
    {false, Activation::kGeluTanh, true, false, CUBLASLT_EPILOGUE_GELU_AUX},
    {true, Activation::kGeluTanh, true, false, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
    {false, Activation::kNone, false, true, CUBLASLT_EPILOGUE_DGELU},
};

// Default where it cannot do all, but for the residual and the gate's output.
cublasLtEpilogue_t fused_epilogue(const Epilogue& rest, DType dtype) {
  constexpr int64_t kAuxWidth =
      8;  // what the library wants rows of such a matrix to be a multiple of
  const bool gate = rest.gate_input != nullptr;
  if (rest.residual != nullptr || rest.dropout.p > 0.0f) return CUBLASLT_EPILOGUE_DEFAULT;
  if (gate && rest.gate_activation != Activation::kGeluTanh) return CUBLASLT_EPILOGUE_DEFAULT;
  for (const Fusion& fusion : kFusions) {
    if (fusion.bias != (rest.bias != nullptr) || fusion.activation != rest.activation ||
        fusion.pre_activation != (rest.pre_activation != nullptr) || fusion.gate != gate)
      continue;
    const bool gelu = gate || fusion.activation == Activation::kGeluTanh;
    if (gelu && dtype != DType::kBFloat16) break;
    if ((gate || fusion.pre_activation) && rest.n % kAuxWidth != 0) break;
    return fusion.epilogue;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

// ---- Products by the library

// How a product of the library is taken, and its scratch.
struct Way {
  int64_t m, n, k, batch;
  bool narrow;   // operands are bfloat16
  DType result;  // of the library
  bool adds;     // the library adds the residual
  bool apart;    // sums are scratch: C is of another type, or still to be read
  int64_t bytes;

  Way(const MatmulArgs& args, bool bfloat16) {
    m = args.c.dim(-2);
    n = args.c.dim(-1);
    k = args.transpose_a ? args.a.dim(-2) : args.a.dim(-1);
    batch = args.c.rank == 3 ? args.c.dim(0) : 1;
    narrow = bfloat16 || args.a.dtype == DType::kBFloat16 || args.b.dtype == DType::kBFloat16;
    result = narrow ? args.c.dtype : DType::kFloat32;
    const Epilogue to(args);
    adds = to.residual != nullptr && to.is_linear() && result == args.c.dtype && k > 0;
    apart = result != args.c.dtype || (to.residual == to.c && !adds);
    bytes = narrowed_bytes(args.a, args.a_stride, narrow) + narrowed_bytes(args.b, 0, narrow) +
            narrowed_bytes(args.bias, 0, result == DType::kBFloat16) +
            (apart ? elements(args.c, args.c_stride) * dtype_size(result) : 0);
  }
};

void multiply_by_library(const Context& context, const MatmulArgs& args, const Way& way) {
  char* scratch = args.scratch.as<char>();
  Epilogue rest(args);
  ProductData data{.a = narrowed(context, args.a, args.a_stride, way.narrow, scratch),
                   .b = narrowed(context, args.b, 0, way.narrow, scratch)};
  if (way.adds) data.added = rest.residual;
  const bool fusible = !way.apart && way.k > 0;
  ProductKind kind{.m = way.m,
                   .n = way.n,
                   .k = way.k,
                   .transpose_a = args.transpose_a,
                   .transpose_b = args.transpose_b,
                   .operands = way.narrow ? DType::kBFloat16 : DType::kFloat32,
                   .result = way.result,
                   .adds = way.adds,
                   .batch = way.batch,
                   .one_a = way.batch > 1 && args.a.dim(0) == 1,
                   .one_b = way.batch > 1 && args.b.dim(0) == 1,
                   .a_stride = args.a_stride,
                   .c_stride = args.c_stride};
  if (way.adds) rest.residual = nullptr;
  kind.epilogue = fusible ? fused_epilogue(rest, way.result) : CUBLASLT_EPILOGUE_DEFAULT;
  if (kind.epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
    if (rest.bias != nullptr)
      data.bias = narrowed(context, args.bias, 0, way.result == DType::kBFloat16, scratch);
    data.aux = rest.gate_input != nullptr ? args.gate_input.data : args.pre_activation.data;
    data.c = args.c.data;
    if (multiply(context, kind, data)) {
      if (rest.gate_output != nullptr)
        activation_forward(
            context,
            {.activation = rest.gate_activation, .x = args.gate_input, .y = args.gate_output});
      return;
    }
    kind.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    data.bias = data.aux = nullptr;
  }
  data.c = way.apart ? scratch : args.c.data;
  if (way.k == 0)
    gpu::fill_zeros(context.queue, data.c,
                    elements(args.c, args.c_stride) * dtype_size(way.result));
  else
    CHECK(multiply(context, kind, data), DeviceError, "matmul: cuBLASLt has no product of ",
          shape_string(args.a), " and ", shape_string(args.b));
  if (way.apart || !rest.is_empty()) finish_all(context, data.c, way.result, rest, args.c);
}

// ---- Sums of columns: parts of the rows, then the parts

constexpr int kSumWarps = 8;

template <class T, int kCount>
__global__ void __launch_bounds__(kSumWarps* kWarp)
    sum_parts(const T* x, int64_t stride, float* partial, int64_t rows, int64_t width,
              int64_t part_rows) {
  take_turn();
  __shared__ float shared[kSumWarps][kWarp][kCount + 1];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t col = (static_cast<int64_t>(blockIdx.x) * kWarp + lane) * kCount;
  const int64_t begin = blockIdx.y * part_rows;
  const int64_t end = begin + part_rows < rows ? begin + part_rows : rows;
  float sum[kCount] = {};
  if (col < width) {
#pragma unroll 4
    for (int64_t row = begin + warp; row < end; row += kSumWarps) {
      float pack[kCount];
      load_elements(x + row * stride + col, pack);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum[i] += pack[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[warp][lane][i] = sum[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * kCount; i += kSumWarps * kWarp) {
    const int64_t to = static_cast<int64_t>(blockIdx.x) * kWarp * kCount + i;
    if (to >= width) break;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kSumWarps; ++w) total += shared[w][i / kCount][i % kCount];
    partial[blockIdx.y * width + to] = total;
  }
}

__global__ void add_parts(const float* partial, float* out, int64_t parts, int64_t width) {
  take_turn();
  const int64_t col = thread_index();
  if (col >= width) return;
  float total = 0.0f;
#pragma unroll 8
  for (int64_t part = 0; part < parts; ++part) total += partial[part * width + col];
  out[col] += total;
}

void column_sum(const Context& context, const ColumnSumArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols(), parts = args.partial.dim(0);
  const int64_t stride = args.x_stride > 0 ? args.x_stride : width;
  with_type(args.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto start = [&](auto kernel, int count) {
      const auto blocks = static_cast<unsigned>(blocks_of(width, kWarp * count));
      launch(context, kernel, dim3(blocks, static_cast<unsigned>(parts)), dim3(kSumWarps * kWarp),
             0, args.x.as<T>(), stride, args.partial.f32(), rows, width, blocks_of(rows, parts));
    };
    if (packs<T>(args.x.data, stride))
      start(sum_parts<T, kPack<T>>, kPack<T>);
    else
      start(sum_parts<T, 1>, 1);
  });
  launch_each(context, add_parts, width, args.partial.f32(), args.out.f32(), parts, width);
}

// ---- The tables

template <bool kBFloat16>
int64_t scratch_bytes(const MatmulArgs& args) {
  return is_of_few_rows(args) ? 0 : Way(args, kBFloat16).bytes;
}

template <bool kBFloat16>
void matmul(const Context& context, const MatmulArgs& args) {
  if (is_of_few_rows(args))
    multiply_few_rows(context, args, kBFloat16);
  else
    multiply_by_library(context, args, Way(args, kBFloat16));
}

}  // namespace

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {.scratch_bytes = scratch_bytes<false>,
                                      .matmul = matmul<false>,
                                      .column_sum = column_sum,
                                      .batched = matmul<false>,
                                      .normalises = normalises_few_rows};
extern const MatmulBFloat16Kernels matmul_bfloat16_kernels;
const MatmulBFloat16Kernels matmul_bfloat16_kernels = {.scratch_bytes = scratch_bytes<true>,
                                                       .matmul = matmul<true>};

}  // namespace llmcore::cuda
