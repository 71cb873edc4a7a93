// Products in float, or in int32 of int8: each sum is one of chains, which run over k from first to
// last.
#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"

namespace emulation {
namespace {

using llmcore::BFloat16;

// The tile of sums that stays in registers.
constexpr int64_t kRows = 4, kCols = 8;
constexpr int64_t kChain = 256;  // a single one errs too much where k is large

template <class T>
T load(const void* data, int32_t type, int64_t i) {
  switch (type) {
    case CUDA_R_16BF:
      return static_cast<T>(llmcore::to_float(static_cast<const BFloat16*>(data)[i]));
    case CUDA_R_8I:
      return static_cast<T>(static_cast<const int8_t*>(data)[i]);
    case CUDA_R_32I:
      return static_cast<T>(static_cast<const int32_t*>(data)[i]);
    default:
      return static_cast<T>(static_cast<const float*>(data)[i]);
  }
}

template <class T>
void store(void* data, int32_t type, int64_t i, T value) {
  if (type == CUDA_R_16BF)
    static_cast<BFloat16*>(data)[i] = llmcore::to_bfloat16(static_cast<float>(value));
  else if (type == CUDA_R_32I)
    static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
  else
    static_cast<float*>(data)[i] = static_cast<float>(value);
}

int64_t at(const Layout& layout, int64_t batch, int64_t row, int64_t col) {
  return batch * layout.batch_stride +
         (layout.order == CUBLASLT_ORDER_COL ? col * layout.ld + row : row * layout.ld + col);
}

int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Panels of `width` rows each, [panel][k][row in panel], zero behind the last row.
template <class T>
std::vector<T> pack(const void* data, const Layout& layout, int64_t batch, bool rows_are_cols,
                    int64_t rows, int64_t k, int64_t width) {
  std::vector<T> packed(round_up(rows, width) * k);
  T* next = packed.data();
  for (int64_t first = 0; first < rows; first += width)
    for (int64_t i = 0; i < k; ++i)
      for (int64_t row = first; row < first + width; ++row, ++next)
        if (row < rows)
          *next = load<T>(data, layout.type,
                          rows_are_cols ? at(layout, batch, i, row) : at(layout, batch, row, i));
  return packed;
}

// One tile. Reads and writes buffers of this file alone, so that sanitizers need not slow it down.
template <class T>
__attribute__((optimize("O3"), no_sanitize("address", "undefined"))) void multiply_tile(const T* a,
                                                                                        const T* b,
                                                                                        int64_t k,
                                                                                        T* sums) {
  T tile[kRows * kCols] = {};
  for (int64_t i = 0; i < k; ++i)
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t col = 0; col < kCols; ++col)
        tile[row * kCols + col] += a[i * kRows + row] * b[i * kCols + col];
  std::copy(tile, tile + kRows * kCols, sums);
}

double tanh_part(double x) {
  return std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
}

float gelu(float x) {
  return static_cast<float>(0.5 * x * (1.0 + tanh_part(x)));
}

float gelu_derivative(float x) {
  const double t = tanh_part(x);
  const double slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x);
  return static_cast<float>(0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
}

// What becomes of one element before it is stored. `bias_gradient` is of its row.
float finish(const Product& product, int64_t batch, int64_t row, int64_t col, float value,
             double& bias_gradient) {
  const auto& desc = product.desc;
  const int64_t aux = batch * desc.aux_stride + col * desc.aux_ld + row;
  if (product.has(kBias))
    value += load<float>(desc.bias, desc.bias_type, batch * desc.bias_stride + row);
  if (product.has(kRelu)) return std::max(value, 0.0f);
  if (product.has(kGelu)) {
    if (product.has(kAux)) store(desc.aux, desc.aux_type, aux, value);
    return gelu(value);
  }
  if (product.has(kGeluGradient)) {
    value *= gelu_derivative(load<float>(desc.aux, desc.aux_type, aux));
    bias_gradient += value;
  }
  return value;
}

// Sums of the rows of A, or of the columns of B, over k.
template <class T>
void sum_inputs(const Product& product, int64_t batch, const std::vector<T>& packed, int64_t width,
                int64_t rows, int64_t k) {
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < k; ++i)
      sum += static_cast<double>(packed[(row / width * k + i) * width + row % width]);
    store(product.desc.bias, product.desc.bias_type, batch * product.desc.bias_stride + row, sum);
  }
}

template <class T>
void multiply_batch(const Product& product, int64_t batch, T alpha, T beta) {
  const auto& desc = product.desc;
  const bool transpose_a = desc.transpose_a != CUBLAS_OP_N;
  const bool transpose_b = desc.transpose_b != CUBLAS_OP_N;
  const Layout& d = product.d_layout;
  const auto m = static_cast<int64_t>(d.rows), n = static_cast<int64_t>(d.cols);
  const auto k = static_cast<int64_t>(transpose_a ? product.a_layout.rows : product.a_layout.cols);
  const auto a = pack<T>(product.a, product.a_layout, batch, transpose_a, m, k, kRows);
  const auto b = pack<T>(product.b, product.b_layout, batch, !transpose_b, n, k, kCols);
  if (product.has(kSumA)) sum_inputs(product, batch, a, kRows, m, k);
  if (product.has(kSumB)) sum_inputs(product, batch, b, kCols, n, k);
  std::vector<double> bias_gradient(m);
  for (int64_t col = 0; col < n; col += kCols)
    for (int64_t row = 0; row < m; row += kRows) {
      T sums[kRows * kCols] = {};
      for (int64_t first = 0; first < k; first += kChain) {
        T chain[kRows * kCols];
        multiply_tile(a.data() + row * k + first * kRows, b.data() + col * k + first * kCols,
                      std::min(k - first, kChain), chain);
        for (int64_t i = 0; i < kRows * kCols; ++i) sums[i] += chain[i];
      }
      for (int64_t j = col; j < std::min(n, col + kCols); ++j)
        for (int64_t i = row; i < std::min(m, row + kRows); ++i) {
          T value = alpha * sums[(i - row) * kCols + j - col];
          if (beta != T{})  // or c is not read
            value +=
                beta * load<T>(product.c, product.c_layout.type, at(product.c_layout, batch, i, j));
          if constexpr (std::is_same_v<T, float>)
            value = finish(product, batch, i, j, value, bias_gradient[i]);
          store(product.d, d.type, at(d, batch, i, j), value);
        }
    }
  if (product.has(kBiasGradient))
    for (int64_t i = 0; i < m; ++i)
      store(desc.bias, desc.bias_type, batch * desc.bias_stride + i, bias_gradient[i]);
}

}  // namespace

size_t element_bytes(int32_t type) {
  return type == CUDA_R_8I ? 1 : type == CUDA_R_16BF ? 2 : 4;
}

void multiply(const Product& product) {
  const bool integers = product.desc.compute == CUBLAS_COMPUTE_32I;
  uint32_t alpha = product.alpha_bits, beta = product.beta_bits;
  if (product.alpha != nullptr) std::memcpy(&alpha, product.alpha, sizeof alpha);
  if (product.beta != nullptr) std::memcpy(&beta, product.beta, sizeof beta);
  for (int64_t batch = 0; batch < product.d_layout.batch_count; ++batch) {
    if (integers)
      multiply_batch(product, batch, alpha, beta);
    else
      multiply_batch(product, batch, __builtin_bit_cast(float, alpha),
                     __builtin_bit_cast(float, beta));
  }
}

}  // namespace emulation
