// Elementwise and row operations in CUDA: one pack of elements a thread, one read and one write.
#include "ops/elementwise.h"

#include "cuda/exp_sum.h"
#include "cuda/philox.h"

namespace llmcore::cuda {
namespace {

// Whether arrays may be read and written a pack at a time; those not given may.
template <class... Tensors>
bool all_pack(const Tensors&... tensors) {
  return (... && (reinterpret_cast<uintptr_t>(tensors.data) % 16 == 0));
}

template <class T, class Args>
void launch_packs(const Context& context, void (*kernel)(Args, int64_t, bool), const Args& args,
                  int64_t count, bool aligned) {
  launch_each(context, kernel, blocks_of(count, kPack<T>), args, count, aligned);
}

template <class T>
__global__ void dropout_kernel(DropoutArgs args, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kPack<T>;
  if (i >= count) return;
  float x[kPack<T>], residual[kPack<T>] = {}, factor[kPack<T>];
  load_up_to(args.x.as<T>() + i, count - i, aligned, x);
  if (args.residual) load_up_to(args.residual.as<T>() + i, count - i, aligned, residual);
  if (args.dropout.p > 0.0f) {
    dropout_factors(args.dropout, args.offset + i, factor);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) x[k] *= factor[k];
  }
#pragma unroll
  for (int k = 0; k < kPack<T>; ++k) x[k] += residual[k];
  store_up_to(args.y.as<T>() + i, x, count - i, aligned);
}

void dropout(const Context& context, const DropoutArgs& args) {
  with_type(args.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_packs<T>(context, dropout_kernel<T>, args, args.x.numel(),
                    all_pack(args.x, args.residual, args.y));
  });
}

template <class T>
__global__ void add_kernel(AddArgs args, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kPack<T>;
  if (i >= count) return;
  float a[kPack<T>], b[kPack<T>];
  load_up_to(args.a.as<T>() + i, count - i, aligned, a);
  load_up_to(args.b.as<T>() + i, count - i, aligned, b);
#pragma unroll
  for (int k = 0; k < kPack<T>; ++k) a[k] += b[k];
  store_up_to(args.y.as<T>() + i, a, count - i, aligned);
}

void add(const Context& context, const AddArgs& args) {
  with_type(args.y.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_packs<T>(context, add_kernel<T>, args, args.y.numel(), all_pack(args.a, args.b, args.y));
  });
}

template <class T>
__global__ void scale_kernel(ScaleArgs args, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kPack<T>;
  if (i >= count) return;
  float x[kPack<T>];
  load_up_to(args.x.as<T>() + i, count - i, aligned, x);
#pragma unroll
  for (int k = 0; k < kPack<T>; ++k) x[k] *= args.factor;
  store_up_to(args.y.as<T>() + i, x, count - i, aligned);
}

void scale(const Context& context, const ScaleArgs& args) {
  with_type(args.y.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_packs<T>(context, scale_kernel<T>, args, args.y.numel(), all_pack(args.x, args.y));
  });
}

template <class T>
__global__ void fill_kernel(FillArgs args, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kPack<T>;
  if (i >= count) return;
  float y[kPack<T>];
#pragma unroll
  for (int k = 0; k < kPack<T>; ++k) y[k] = args.value;
  store_up_to(args.y.as<T>() + i, y, count - i, aligned);
}

void fill(const Context& context, const FillArgs& args) {
  with_type(args.y.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_packs<T>(context, fill_kernel<T>, args, args.y.numel(), all_pack(args.y));
  });
}

// Eight elements, which are 16 bytes of a half-precision type.
constexpr int kCasts = 8;
template <class T>
struct alignas(16) Eight {
  T at[kCasts];
};

template <class To, class From>
__device__ __forceinline__ To cast_to(From x) {
  if constexpr (std::is_same_v<To, float>)
    return to_float(x);
  else if constexpr (std::is_same_v<To, BFloat16>)
    return to_bfloat16(x);
  else
    return to_float16(x);
}

template <class From, class To>
__global__ void cast_kernel(CastArgs args, int64_t count, bool aligned) {
  take_turn();
  const int64_t i = thread_index() * kCasts;
  if (i >= count) return;
  const From* x = args.x.as<From>() + i;
  To* y = args.y.as<To>() + i;
  if (aligned && count - i >= kCasts) {
    const Eight<From> from = *reinterpret_cast<const Eight<From>*>(x);
    Eight<To> to;
#pragma unroll
    for (int k = 0; k < kCasts; ++k) to.at[k] = cast_to<To>(from.at[k]);
    *reinterpret_cast<Eight<To>*>(y) = to;
  } else {
    for (int k = 0; k < kCasts && i + k < count; ++k) y[k] = cast_to<To>(x[k]);
  }
}

void cast(const Context& context, const CastArgs& args) {
  const auto kernel = args.x.dtype == DType::kBFloat16   ? cast_kernel<BFloat16, float>
                      : args.x.dtype == DType::kFloat16  ? cast_kernel<Float16, float>
                      : args.y.dtype == DType::kBFloat16 ? cast_kernel<float, BFloat16>
                                                         : cast_kernel<float, Float16>;
  const int64_t count = args.x.numel();
  launch_each(context, kernel, blocks_of(count, kCasts), args, count, all_pack(args.x, args.y));
}

constexpr int kSoftmaxThreads = 1024;

// A block a row, the second pass from the caches.
template <bool kAligned>
__global__ void __launch_bounds__(kSoftmaxThreads) softmax_kernel(SoftmaxArgs args) {
  take_turn();
  __shared__ float shared[kWarp];
  const int64_t width = args.x.cols(), begin = blockIdx.x * width;
  const float* x = args.x.f32() + begin;
  float* y = args.y.f32() + begin;
  const ExpSum total = exp_sum<float>(width, shared, [&](int step, auto whole) {
    return load_step<float, kAligned>(x, width, step, whole, -INFINITY);
  });
  const bool none = total.sum == 0.0f;  // no finite element: zeros
  const float divisor = none ? 1.0f : total.sum, log_sum = logf(divisor);
  each_step<float>(width, [&](int step, auto whole) {
    float v[kPack<float>];
    open_pack<float>(load_step<float, kAligned>(x, width, step, whole, 0.0f), v);
#pragma unroll
    for (float& each : v)
      each = args.log && !none ? each - total.max - log_sum : exp_below(each, total.max) / divisor;
    store_step<float, kAligned>(y, width, step, whole, v);
  });
}

void softmax(const Context& context, const SoftmaxArgs& args) {
  const int64_t width = args.x.cols();
  with_bool(packs<float>(args.x.data, width) && packs<float>(args.y.data, width), [&](auto a) {
    launch(context, softmax_kernel<a()>, dim3(static_cast<unsigned>(args.x.rows())),
           dim3(row_threads<float>(width, kSoftmaxThreads)), 0, args);
  });
}

// softmax:      dx = y (dy - sum(dy y))
// log softmax:  dx = dy - e^y sum(dy)
template <bool kAligned>
__global__ void __launch_bounds__(kSoftmaxThreads)
    softmax_backward_kernel(SoftmaxBackwardArgs args) {
  take_turn();
  __shared__ float shared[kWarp];
  const int64_t width = args.y.cols(), begin = blockIdx.x * width;
  const float *dy = args.dy.f32() + begin, *y = args.y.f32() + begin;
  float d[kPack<float>], out[kPack<float>], sum = 0.0f;
  const auto load = [&](const float* row, int step, auto whole, float(&pack)[kPack<float>]) {
    open_pack<float>(load_step<float, kAligned>(row, width, step, whole, 0.0f), pack);
  };
  each_step<float>(width, [&](int step, auto whole) {
    load(dy, step, whole, d);
    if (!args.log) load(y, step, whole, out);
#pragma unroll
    for (int k = 0; k < kPack<float>; ++k) sum += args.log ? d[k] : d[k] * out[k];
  });
  sum = block_sum(sum, shared);
  each_step<float>(width, [&](int step, auto whole) {
    load(dy, step, whole, d);
    load(y, step, whole, out);
#pragma unroll
    for (int k = 0; k < kPack<float>; ++k)
      d[k] = args.log ? d[k] - expf(out[k]) * sum : out[k] * (d[k] - sum);
    store_step<float, kAligned>(args.dx.f32() + begin, width, step, whole, d);
  });
}

void softmax_backward(const Context& context, const SoftmaxBackwardArgs& args) {
  const int64_t width = args.y.cols();
  const bool aligned = packs<float>(args.dy.data, width) && packs<float>(args.y.data, width) &&
                       packs<float>(args.dx.data, width);
  with_bool(aligned, [&](auto a) {
    launch(context, softmax_backward_kernel<a()>, dim3(static_cast<unsigned>(args.y.rows())),
           dim3(row_threads<float>(width, kSoftmaxThreads)), 0, args);
  });
}

// Rows are copied in units of the widest type that their places and widths are multiples of.
template <class Unit>
struct Rows {
  const Unit* x;
  Unit* y;
  int64_t count, units, x_stride, y_stride;  // in units
};

// y[n] = x[index[n]], or x[n] where there is no index.
template <class Unit>
__global__ void copy_rows_kernel(Rows<Unit> rows, const int32_t* index) {
  take_turn();
  const auto [row, unit] = row_part(rows.units);
  if (row >= rows.count || unit >= rows.units) return;
  const int64_t from = index == nullptr ? row : index[row];
  rows.y[row * rows.y_stride + unit] = rows.x[from * rows.x_stride + unit];
}

template <class Unit>
bool copied_in_units(const Context& context, const CopyRowsArgs& args, const int32_t* index) {
  constexpr int64_t kBytes = sizeof(Unit);
  const int64_t element = dtype_size(args.dtype);
  const auto places = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y);
  if (places % kBytes != 0) return false;
  for (const int64_t size : {args.cols, args.x_stride, args.y_stride})
    if (size * element % kBytes != 0) return false;
  const Rows<Unit> rows{static_cast<const Unit*>(args.x),
                        static_cast<Unit*>(args.y),
                        args.rows,
                        args.cols * element / kBytes,
                        args.x_stride * element / kBytes,
                        args.y_stride * element / kBytes};
  launch_rows(context, copy_rows_kernel<Unit>, rows.count, rows.units, rows, index);
  return true;
}

void copy_indexed(const Context& context, const CopyRowsArgs& args, const int32_t* index) {
  copied_in_units<uint4>(context, args, index) || copied_in_units<uint2>(context, args, index) ||
      copied_in_units<uint32_t>(context, args, index) ||
      copied_in_units<uint16_t>(context, args, index) ||
      copied_in_units<uint8_t>(context, args, index);
}

void copy_rows(const Context& context, const CopyRowsArgs& args) {
  copy_indexed(context, args, nullptr);
}

void gather_rows(const Context& context, const GatherRowsArgs& args) {
  const int64_t width = args.x.cols();
  copy_indexed(context,
               {.rows = args.y.rows(),
                .cols = width,
                .dtype = args.x.dtype,
                .x = args.x.data,
                .y = args.y.data,
                .x_stride = width,
                .y_stride = width},
               args.index.as<int32_t>());
}

// The first place in ascending `index` whose row is at least `row`.
__device__ int64_t lower_bound(const int32_t* index, int64_t count, int64_t row) {
  int64_t begin = 0;
  while (begin < count) {
    const int64_t middle = begin + (count - begin) / 2;
    if (index[middle] < row)
      begin = middle + 1;
    else
      count = middle;
  }
  return begin;
}

template <class T>
__global__ void scatter_rows_kernel(ScatterRowsArgs args, bool aligned) {
  take_turn();
  const int64_t width = args.x.cols(), count = args.index.numel();
  const auto [row, pack] = row_part(blocks_of(width, kPack<T>));
  const int64_t c = pack * kPack<T>;
  if (row >= args.y.rows() || c >= width) return;
  const int32_t* index = args.index.as<int32_t>();
  float sum[kPack<T>] = {}, x[kPack<T>];
  for (int64_t i = lower_bound(index, count, row); i < count && index[i] == row; ++i) {
    load_up_to(args.x.as<T>() + i * width + c, width - c, aligned, x);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) sum[k] += x[k];
  }
  store_up_to(args.y.as<T>() + row * width + c, sum, width - c, aligned);
}

void scatter_rows(const Context& context, const ScatterRowsArgs& args) {
  const int64_t width = args.x.cols();
  with_type(args.y.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_rows(context, scatter_rows_kernel<T>, args.y.rows(), blocks_of(width, kPack<T>), args,
                packs<T>(args.x.data, width) && packs<T>(args.y.data, width));
  });
}

constexpr int kTile = 32, kTileRows = 8;  // a tile's side, and how many rows of it a block takes

__global__ void transpose_kernel(TransposeArgs args) {
  take_turn();
  __shared__ float tile[kTile][kTile + 1];  // one more: a column then lies in 32 banks
  const int64_t rows = args.x.rows(), width = args.x.cols(), across = blocks_of(width, kTile);
  const int64_t first_row = blockIdx.x / across * kTile, first_column = blockIdx.x % across * kTile;
  const int x = threadIdx.x;
  for (int y = threadIdx.y; y < kTile; y += kTileRows)
    if (first_row + y < rows && first_column + x < width)
      tile[y][x] = args.x.f32()[(first_row + y) * width + first_column + x];
  __syncthreads();
  for (int y = threadIdx.y; y < kTile; y += kTileRows)
    if (first_column + y < width && first_row + x < rows)
      args.y.f32()[(first_column + y) * rows + first_row + x] = tile[x][y];
}

void transpose(const Context& context, const TransposeArgs& args) {
  const int64_t tiles = blocks_of(args.x.rows(), kTile) * blocks_of(args.x.cols(), kTile);
  launch(context, transpose_kernel, dim3(static_cast<unsigned>(tiles)), dim3(kTile, kTileRows), 0,
         args);
}

}  // namespace

extern const ElementwiseKernels elementwise_kernels;
const ElementwiseKernels elementwise_kernels = {.dropout = dropout,
                                                .add = add,
                                                .scale = scale,
                                                .fill = fill,
                                                .cast = cast,
                                                .softmax = softmax,
                                                .softmax_backward = softmax_backward,
                                                .gather_rows = gather_rows,
                                                .scatter_rows = scatter_rows,
                                                .copy_rows = copy_rows,
                                                .transpose = transpose};

}  // namespace llmcore::cuda
