// Layer norm and RMS norm on CUDA: rows stand in registers while they are summed, so that each
// element is read once and written once.
#include "ops/norm.h"

#include <algorithm>

#include "cuda/floats.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"

namespace llmcore::cuda {
namespace {

// The pack at `column` of one row of each of kRows matrices [N, C], zero of a matrix that is not
// there. Threads 0 to blockDim.x - 1 have a row to themselves, kPacks packs each, or with none, as
// many as it takes, read again at each visit. With kAligned all packs are whole.
template <class T, bool kAligned, int kPacks, int kRows>
struct Rows {
  using Pack = float[kRows][kPack<T>];

  __device__ __forceinline__ explicit Rows(int64_t width) : width_(width) {}

  __device__ __forceinline__ void read(const T* const (&rows)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows_[r] = rows[r];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) load(p, bytes_[p]);
  }

  // visit(p, column, count, pack): its number, where it begins, and the elements from there on.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) {
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p)
        if (column(p) < width_) open(p, bytes_[p], visit);
    } else {
      for (int p = 0; column(p) < width_; ++p) {
        uint4 bytes[kRows];
        load(p, bytes);
        open(p, bytes, visit);
      }
    }
  }

  static __device__ __forceinline__ int64_t column(int p) {
    return (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * kPack<T>;
  }
  static __device__ __forceinline__ int64_t left(int64_t column, int64_t width) {
    return kAligned ? kPack<T> : width - column;
  }

 private:
  __device__ __forceinline__ void load(int p, uint4 (&bytes)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      bytes[r] = make_uint4(0, 0, 0, 0);
      if (column(p) < width_ && rows_[r] != nullptr)
        bytes[r] = load_bytes(rows_[r] + column(p), left(column(p), width_), kAligned);
    }
  }
  template <class Visit>
  __device__ __forceinline__ void open(int p, const uint4 (&bytes)[kRows], Visit visit) const {
    Pack pack;
#pragma unroll
    for (int r = 0; r < kRows; ++r) open_pack<T>(bytes[r], pack[r]);
    visit(p, column(p), left(column(p), width_), pack);
  }

  const T* rows_[kRows];
  int64_t width_;
  uint4 bytes_[kPacks > 0 ? kPacks : 1][kRows];
};

// The sums over the threads that have a row: a warp, or a block of several with `shared`. Warps are
// added first, so that a row has the same sums whether its packs are one lane's or one each of
// several warps.
template <int kSums, int kWarps>
__device__ __forceinline__ void row_sums(float (&sums)[kSums],
                                         float (&shared)[kSums][kWarps][kWarp]) {
  if (blockDim.x > kWarp) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kSums; ++i) shared[i][threadIdx.x / kWarp][lane] = sums[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] = shared[i][0][lane];
      for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp)
        sums[i] += shared[i][warp][lane];
    }
    __syncthreads();
  }
#pragma unroll
  for (float& sum : sums) sum = warp_sum(sum);
}

// Calls f with the fewest packs a thread there is a kernel for, at least `packs`; with none where a
// row is too wide for registers.
template <int... kChoices, class F>
void with_packs(int64_t packs, F f) {
  const bool fits =
      ((packs <= kChoices && (f(std::integral_constant<int, kChoices>{}), true)) || ...);
  if (!fits) f(std::integral_constant<int, 0>{});
}

// Of the block that has the row: whole warps.
unsigned threads_of_row(int64_t packs_of_row, int packs, int most) {
  if (packs == 0) return static_cast<unsigned>(most);
  return static_cast<unsigned>(blocks_of(packs_of_row, packs * kWarp) * kWarp);
}

// Of weight or bias: `fallback` where there is none.
template <int kCount>
__device__ __forceinline__ void load_parameters(const Tensor& parameters, float fallback,
                                                int64_t column, int64_t left, bool aligned,
                                                float (&x)[kCount]) {
  if (parameters) return load_up_to(parameters.f32() + column, left, aligned, x);
#pragma unroll
  for (float& each : x) each = fallback;
}

constexpr int kForwardThreads = 256, kBackwardThreads = 512;  // at most

// ---------------------------------------------------------------------------------------- forward

// threadIdx.y is a row of the block's.
template <class T, bool kAligned, int kPacks>
__global__ void __launch_bounds__(kForwardThreads)
    forward_kernel(NormForwardArgs args, int64_t rows, int64_t width) {
  take_turn();
  __shared__ float shared[1][kForwardThreads / kWarp][kWarp];
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= rows) return;
  Rows<T, kAligned, kPacks, 1> row(width);
  row.read({args.x.as<T>() + n * width});
  const float count = static_cast<float>(width);
  float mean = 0.0f;
  if (args.kind == NormKind::kLayer) {
    float sums[1] = {};
    row.each([&](int, int64_t, int64_t, auto& pack) {
      float sum = 0.0f;
#pragma unroll
      for (float x : pack[0]) sum += x;
      sums[0] += sum;
    });
    row_sums(sums, shared);
    mean = sums[0] / count;
  }
  float squares[1] = {};
  row.each([&](int, int64_t, int64_t left, auto& pack) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const float centred = i < left ? pack[0][i] - mean : 0.0f;
      sum = fmaf(centred, centred, sum);
    }
    squares[0] += sum;
  });
  row_sums(squares, shared);
  const float rstd = 1.0f / sqrtf(squares[0] / count + args.eps);
  row.each([&](int, int64_t column, int64_t left, auto& pack) {
    float weight[kPack<T>], bias[kPack<T>];
    load_parameters(args.weight, 1.0f, column, left, kAligned, weight);
    load_parameters(args.bias, 0.0f, column, left, kAligned, bias);
    float y[kPack<T>];
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) y[i] = fmaf((pack[0][i] - mean) * rstd, weight[i], bias[i]);
    store_up_to(args.y.as<T>() + n * width + column, y, left, kAligned);
  });
  if (threadIdx.x != 0) return;
  if (args.mean) args.mean.f32()[n] = mean;
  if (args.rstd) args.rstd.f32()[n] = rstd;
}

// Rows that a warp can hold are a warp's each, without barriers, where there are enough of them,
// and a block's where not: a token alone must not wait for one warp. Which it is changes no bit,
// nor may how the compiler fuses operations: hence fmaf.
void forward(const Context& context, const NormForwardArgs& args) {
  with_type(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kMost = 8, kRowsOfWarps = 4, kManyRows = 1024;
    const int64_t rows = args.x.rows(), width = args.x.cols(), all = blocks_of(width, kPack<T>);
    const bool aligned = packs<T>(args.x.data, width) && packs<T>(args.y.data, width) &&
                         packs<T>(args.weight.data, width) && packs<T>(args.bias.data, width);
    const bool one_warp = all <= kMost * kWarp && rows >= kManyRows;
    const int64_t wanted = blocks_of(all, one_warp ? kWarp : kForwardThreads);
    with_packs<1, 2, 4, kMost>(wanted, [&](auto count) {
      const unsigned across = threads_of_row(all, count(), kForwardThreads);
      const unsigned down = across == kWarp ? kRowsOfWarps : 1;
      with_bool(aligned, [&](auto a) {
        launch(context, forward_kernel<T, a(), count()>,
               dim3(static_cast<unsigned>(blocks_of(rows, down))), dim3(across, down), 0, args,
               rows, width);
      });
    });
  });
}

// --------------------------------------------------------------------------------------- backward

// As norm_cpu.cpp has it. A block takes its share of the rows one after another, the next one being
// on its way while one is summed if registers hold both, and keeps their sums for dweight and dbias
// in registers, or where rows are too wide for them, in `partial`.
template <class T, bool kAligned, int kPacks>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(NormBackwardArgs args, int64_t rows, int64_t width) {
  take_turn();
  constexpr int kHeld = kPacks > 0 ? kPacks : 1, kCount = kPack<T>;
  constexpr bool kAhead = kPacks <= 2;
  using Row = Rows<T, kAligned, kPacks, 3>;
  __shared__ float shared[2][kBackwardThreads / kWarp][kWarp];
  float weight[kHeld][kCount], dweight[kHeld][kCount] = {}, dbias[kHeld][kCount] = {};
  float* const partial = args.partial.f32() + static_cast<int64_t>(blockIdx.x) * 2 * width;
  const auto load_weight = [&](int64_t column, float(&w)[kCount]) {
    load_parameters(args.weight, 1.0f, column, Row::left(column, width), kAligned, w);
  };
  const auto store_sums = [&](int64_t column, const float(&dw)[kCount], const float(&db)[kCount]) {
    const int64_t left = Row::left(column, width);
    if (args.dweight) store_up_to(partial + column, dw, left, kAligned);
    if (args.dbias) store_up_to(partial + width + column, db, left, kAligned);
  };
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    if (Row::column(p) < width) load_weight(Row::column(p), weight[p]);

  const bool layer = args.kind == NormKind::kLayer;
  const float count = static_cast<float>(width);
  const int64_t begin = blockIdx.x * rows / gridDim.x,
                end = (blockIdx.x + int64_t{1}) * rows / gridDim.x;
  T* const dx = args.dx.as<T>();
  Row row(width), next(width);
  float next_mean = 0.0f, next_rstd;
  const auto read_next = [&](int64_t n) {
    next.read({args.x.as<T>() + n * width, args.dy.as<T>() + n * width,
               args.accumulate ? dx + n * width : nullptr});
    if (layer) next_mean = args.mean.f32()[n];
    next_rstd = args.rstd.f32()[n];
  };
  if (kAhead) read_next(begin);
  for (int64_t n = begin; n < end; ++n) {
    if (!kAhead) read_next(n);
    row = next;
    const float mean = next_mean, rstd = next_rstd;
    if (kAhead && n + 1 < end) read_next(n + 1);
    float sums[2] = {};  // of g and of g xhat
    row.each([&](int p, int64_t column, int64_t, auto& pack) {
      auto& w = weight[kPacks > 0 ? p : 0];
      if constexpr (kPacks == 0) load_weight(column, w);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float g = pack[1][i] * w[i];
        sums[0] += g;
        sums[1] += g * ((pack[0][i] - mean) * rstd);
      }
    });
    row_sums(sums, shared);
    const float mean_g = layer ? sums[0] / count : 0.0f, mean_gx = sums[1] / count;
    row.each([&](int p, int64_t column, int64_t left, auto& pack) {
      const int held = kPacks > 0 ? p : 0;
      auto &w = weight[held], &dw = dweight[held], &db = dbias[held];
      if constexpr (kPacks == 0) {
        load_weight(column, w);
        load_up_to(partial + column, n > begin && args.dweight ? left : 0, kAligned, dw);
        load_up_to(partial + width + column, n > begin && args.dbias ? left : 0, kAligned, db);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float xhat = (pack[0][i] - mean) * rstd, dy = pack[1][i];
        dw[i] += dy * xhat;
        db[i] += dy;
        pack[2][i] += (dy * w[i] - mean_g - xhat * mean_gx) * rstd;
      }
      store_up_to(dx + n * width + column, pack[2], left, kAligned);
      if constexpr (kPacks == 0) store_sums(column, dw, db);
    });
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
    if (Row::column(p) < width) store_sums(Row::column(p), dweight[p], dbias[p]);
}

// dweight += the sums over the partials, and dbias: a warp has a share of the partials of 32
// columns, and the first warp adds the shares up.
__global__ void __launch_bounds__(kWarp* kWarp)
    add_kernel(const float* partial, int64_t partials, int64_t width, float* dweight,
               float* dbias) {
  take_turn();
  __shared__ float shares[kWarp][kWarp];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  float* const out = column < width       ? (dweight != nullptr ? dweight + column : nullptr)
                     : column < 2 * width ? (dbias != nullptr ? dbias + column - width : nullptr)
                                          : nullptr;
  float sum = 0.0f;
  if (out != nullptr) {
    const int64_t begin = threadIdx.y * partials / kWarp;
    const int64_t end = (threadIdx.y + 1) * partials / kWarp;
#pragma unroll 8
    for (int64_t i = begin; i < end; ++i) sum += partial[i * 2 * width + column];
  }
  shares[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || out == nullptr) return;
  float total = *out;
#pragma unroll
  for (int i = 0; i < kWarp; ++i) total += shares[i][threadIdx.x];
  *out = total;
}

void backward(const Context& context, const NormBackwardArgs& args) {
  const int64_t rows = args.x.rows(), width = args.x.cols(), partials = args.partial.dim(0);
  with_type(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kMost = 16 / kPack<T>;
    const int64_t all = blocks_of(width, kPack<T>);
    const bool aligned = packs<T>(args.x.data, width) && packs<T>(args.dy.data, width) &&
                         packs<T>(args.dx.data, width) && packs<T>(args.weight.data, width) &&
                         packs<T>(args.partial.data, width);
    with_packs<1, 2, kMost>(blocks_of(all, kBackwardThreads), [&](auto count) {
      with_bool(aligned, [&](auto a) {
        launch(context, backward_kernel<T, a(), count()>, dim3(static_cast<unsigned>(partials)),
               dim3(threads_of_row(all, count(), kBackwardThreads)), 0, args, rows, width);
      });
    });
  });
  if (!args.dweight && !args.dbias) return;
  const int64_t columns = args.dbias ? 2 * width : width;
  launch(context, add_kernel, dim3(static_cast<unsigned>(blocks_of(columns, kWarp))),
         dim3(kWarp, kWarp), 0, args.partial.f32(), partials, width, args.dweight.f32(),
         args.dbias.f32());
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {.forward = forward, .backward = backward};

}  // namespace llmcore::cuda
