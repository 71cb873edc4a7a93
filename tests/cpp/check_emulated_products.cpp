// Emulated cuBLASLt against plain loops: every transpose, order and epilogue, and what it refuses.
#include <algorithm>
#include <cstring>

#include "cublasLt.h"
#include "on_device.h"

namespace llmcore::checking {
namespace {

struct Matrix {
  int64_t rows, cols, ld, stride;
  bool row_major, transposed;
  Floats values;  // of two matrices

  // What op() makes [rows, cols] of it. bfloat16 holds its values.
  Matrix(int64_t op_rows, int64_t op_cols, bool transposed, bool row_major)
      : rows(transposed ? op_cols : op_rows),
        cols(transposed ? op_rows : op_cols),
        ld((row_major ? cols : rows) + 3),
        stride(ld * (row_major ? rows : cols) + 1),
        row_major(row_major),
        transposed(transposed),
        values(random_floats(2 * stride)) {
    for (float& value : values) value = to_float(to_bfloat16(value));
  }

  int64_t at(int64_t batch, int64_t row, int64_t col) const {
    if (transposed) std::swap(row, col);
    return batch * stride + (row_major ? row * ld + col : col * ld + row);
  }

  cublasLtMatrixLayout_t layout(cudaDataType_t type) const {
    cublasLtMatrixLayout_t layout;
    cublasLtMatrixLayoutCreate(&layout, type, rows, cols, ld);
    const auto set = [&](cublasLtMatrixLayoutAttribute_t name, auto value) {
      cublasLtMatrixLayoutSetAttribute(layout, name, &value, sizeof value);
    };
    set(CUBLASLT_MATRIX_LAYOUT_ORDER, int32_t{row_major ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL});
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t{2});
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
    return layout;
  }
};

std::vector<char> encode(const Floats& values, cudaDataType_t type) {
  std::vector<char> bytes(values.size() * (type == CUDA_R_32F ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    const BFloat16 half = to_bfloat16(values[i]);
    if (type == CUDA_R_32F)
      std::memcpy(&bytes[i * 4], &values[i], 4);
    else
      std::memcpy(&bytes[i * 2], &half, 2);
  }
  return bytes;
}

Floats decode(const std::vector<char>& bytes, cudaDataType_t type) {
  Floats values(bytes.size() / (type == CUDA_R_32F ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    BFloat16 half;
    if (type == CUDA_R_32F) {
      std::memcpy(&values[i], &bytes[i * 4], 4);
    } else {
      std::memcpy(&half, &bytes[i * 2], 2);
      values[i] = to_float(half);
    }
  }
  return values;
}

struct Case {
  cudaDataType_t in, out;
  bool transpose_a, transpose_b, row_major;
  cublasLtEpilogue_t epilogue;
};

constexpr int64_t kM = 37, kN = 21, kK = 29, kAuxLd = 40, kAuxStride = kAuxLd * kN;
constexpr float kAlpha = 0.75f, kBeta = 0.5f;

// d, then the auxiliary matrices, then the bias or its gradient: what a plain loop makes of them.
template <class T>
std::vector<T> plain_product(const Case& test, const Matrix& a, const Matrix& b, const Matrix& c,
                             const Floats& aux_in, const Floats& bias_in) {
  const auto is = [&](auto... epilogues) { return ((test.epilogue == epilogues) || ...); };
  std::vector<T> d(c.values.begin(), c.values.end()), aux(aux_in.begin(), aux_in.end());
  std::vector<T> bias(bias_in.begin(), bias_in.end());
  const bool sums =
      is(CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB);
  if (sums) std::fill_n(bias.begin(), is(CUBLASLT_EPILOGUE_BGRADB) ? kN : kM, T{});
  const T root = std::sqrt(T{2} / std::acos(T{-1})), cubic = T(0.044715);
  for (int64_t batch = 0; batch < 2; ++batch)
    for (int64_t i = 0; i < kM; ++i)
      for (int64_t j = 0; j < kN; ++j) {
        T& value = d[c.at(batch, i, j)];
        T& before = aux[batch * kAuxStride + j * kAuxLd + i];
        T sum{};
        for (int64_t k = 0; k < kK; ++k) {
          const T left = a.values[a.at(batch, i, k)], right = b.values[b.at(batch, k, j)];
          sum += left * right;
          if (is(CUBLASLT_EPILOGUE_BGRADA) && batch == 1 && j == 0) bias[i] += left;
          if (is(CUBLASLT_EPILOGUE_BGRADB) && batch == 1 && i == 0) bias[j] += right;
        }
        value = kAlpha * sum + kBeta * value;
        if (test.epilogue & CUBLASLT_EPILOGUE_BIAS) value += bias[i];
        if (test.epilogue & CUBLASLT_EPILOGUE_RELU) value = std::max(value, T{});
        if (is(CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS)) before = value;
        if (test.epilogue & CUBLASLT_EPILOGUE_GELU)
          value *= (T{1} + std::tanh(root * (value + cubic * value * value * value))) / T{2};
        if (is(CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD)) {
          const T tanh = std::tanh(root * (before + cubic * before * before * before));
          value *= (T{1} + tanh) / T{2} + before * (T{1} - tanh * tanh) * root *
                                              (T{1} + 3 * cubic * before * before) / T{2};
        }
        if (is(CUBLASLT_EPILOGUE_DGELU_BGRAD) && batch == 1) bias[i] += value;
      }
  d.insert(d.end(), aux.begin(), aux.end());
  d.insert(d.end(), bias.begin(), bias.end());
  return d;
}

void check_product(const Case& test) {
  const Matrix a(kM, kK, test.transpose_a, test.row_major);
  const Matrix b(kK, kN, test.transpose_b, test.row_major);
  const Matrix c(kM, kN, false, test.row_major && !(test.epilogue & 128));
  const Floats aux = decode(encode(random_floats(2 * kAuxStride), CUDA_R_16BF), CUDA_R_16BF);
  const Floats bias = decode(encode(random_floats(kM), CUDA_R_16BF), CUDA_R_16BF);
  const Array<char> on_a(encode(a.values, test.in)), on_b(encode(b.values, test.in));
  const Array<char> on_d(encode(c.values, test.out)), on_aux(encode(aux, test.out));
  const Array<char> on_bias(encode(bias, test.out));
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t desc;
  cublasLtMatmulPreference_t preference;
  cublasLtCreate(&handle);
  cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatmulPreferenceCreate(&preference);
  const uint64_t workspace_bytes = 2 << 20;
  const Array<char> workspace(workspace_bytes);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace_bytes, sizeof workspace_bytes);
  const auto set = [&](cublasLtMatmulDescAttributes_t name, auto value) {
    cublasLtMatmulDescSetAttribute(desc, name, &value, sizeof value);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, test.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, test.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, test.epilogue);
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, on_bias.data);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, on_aux.data);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kAuxLd);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, kAuxStride);
  const auto layout_a = a.layout(test.in), layout_b = b.layout(test.in);
  const auto layout_c = c.layout(test.out);
  cublasLtMatmulHeuristicResult_t found[8];
  int count = 0;
  cublasLtMatmulAlgoGetHeuristic(handle, desc, layout_a, layout_b, layout_c, layout_c, preference,
                                 8, found, &count);
  const auto multiply = [&] {
    return cublasLtMatmul(handle, desc, &kAlpha, on_a.data, layout_a, on_b.data, layout_b, &kBeta,
                          on_d.data, layout_c, on_d.data, layout_c, &found[count - 1].algo,
                          workspace.data, workspace_bytes, nullptr);
  };
  const std::string name = "cublasLt, epilogue " + std::to_string(test.epilogue);
  expect(name + " runs", count == 3 && multiply() == CUBLAS_STATUS_SUCCESS);
  Floats all = decode(on_d.read(), test.out);
  for (const auto& more : {decode(on_aux.read(), test.out), decode(on_bias.read(), test.out)})
    all.insert(all.end(), more.begin(), more.end());
  const auto reference = [&](auto zero) {
    return plain_product<decltype(zero)>(test, a, b, c, aux, bias);
  };
  if (test.out == CUDA_R_32F) {
    check(name, all, reference);
  } else {
    const Values<double> wanted = reference(0.0);
    double error = 0.0;
    for (size_t i = 0; i < all.size(); ++i)
      error = std::fmax(error, std::fabs(all[i] - wanted[i]) / (1e-3 + std::fabs(wanted[i])));
    report(name + " in bfloat16", error < 0x1p-8, error, 0x1p-8);
  }
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, test.out == CUDA_R_32F ? CUDA_R_16BF : CUDA_R_32F);
  expect("a bias of another type", multiply() == CUBLAS_STATUS_NOT_SUPPORTED);
  for (const auto layout : {layout_a, layout_b, layout_c}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatmulDescDestroy(desc);
  cublasLtDestroy(handle);
}

// int8, as tensor cores take it: A transposed.
void check_integer_product() {
  const int m = 12, n = 5, k = 8;
  const Ints words_a = random_ints(m * k / 4, 0x7fffffff);
  const Ints words_b = random_ints(n * k / 4, 0x7fffffff);
  const Array<int> a(words_a), b(words_b), d(m * n);
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t layout_a, layout_b, layout_d;
  cublasLtCreate(&handle);
  cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32I, CUDA_R_32I);
  cublasLtMatrixLayoutCreate(&layout_a, CUDA_R_8I, k, m, k);
  cublasLtMatrixLayoutCreate(&layout_b, CUDA_R_8I, k, n, k);
  cublasLtMatrixLayoutCreate(&layout_d, CUDA_R_32I, m, n, m);
  const int32_t transposed = CUBLAS_OP_T, alpha = 2, beta = 0;
  const auto multiply = [&] {
    return cublasLtMatmul(handle, desc, &alpha, a.data, layout_a, b.data, layout_b, &beta, d.data,
                          layout_d, d.data, layout_d, nullptr, nullptr, 0, nullptr);
  };
  expect("int8 with A as it is", multiply() != CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, 4);
  expect("int8 runs", multiply() == CUBLAS_STATUS_SUCCESS);
  const auto* bytes_a = reinterpret_cast<const int8_t*>(words_a.data());
  const auto* bytes_b = reinterpret_cast<const int8_t*>(words_b.data());
  Ints wanted(m * n);
  for (int i = 0; i < m * n * k; ++i)
    wanted[i / k] += 2 * bytes_a[i / k % m * k + i % k] * bytes_b[i / k / m * k + i % k];
  expect("int8 product", d.read() == wanted);
  for (const auto layout : {layout_a, layout_b, layout_d}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(desc);
  cublasLtDestroy(handle);
}

}  // namespace

void check_products() {
  for (const bool row_major : {false, true})
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        check_product({CUDA_R_32F, CUDA_R_32F, transpose_a, transpose_b, row_major,
                       CUBLASLT_EPILOGUE_DEFAULT});
  for (const auto epilogue :
       {CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU_BIAS,
        CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_BIAS,
        CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD,
        CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
    for (const auto out : {CUDA_R_32F, CUDA_R_16BF})
      check_product({CUDA_R_16BF, out, true, false, false, epilogue});
  check_integer_product();
}

}  // namespace llmcore::checking
