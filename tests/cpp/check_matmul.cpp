// Matrix products against three plain loops: all forms, odd sizes, every epilogue.
#include "checking.h"
#include "ops/matmul.h"

namespace llmcore::checking {
namespace {

struct Sizes {
  int64_t m, n, k;
};
constexpr Sizes kSizes[] = {{1, 1, 1},    {1, 37, 19},  {5, 3, 0},     {7, 13, 5},   {8, 12, 64},
                            {33, 29, 65}, {64, 31, 17}, {130, 9, 530}, {3, 150, 257}};

struct Product {
  Sizes size;
  bool transpose_a, transpose_b;
  Floats a, b;

  template <class T>
  Values<T> sums() const {
    Values<T> c(size.m * size.n);
    for (int64_t i = 0; i < size.m; ++i)
      for (int64_t j = 0; j < size.n; ++j) {
        T sum = 0;
        for (int64_t k = 0; k < size.k; ++k)
          sum += T(a[transpose_a ? k * size.m + i : i * size.k + k]) *
                 T(b[transpose_b ? j * size.k + k : k * size.n + j]);
        c[i * size.n + j] = sum;
      }
    return c;
  }

  MatmulArgs args(const Floats& c) const {
    return {.a = transpose_a ? tensor(a, size.k, size.m) : tensor(a, size.m, size.k),
            .b = transpose_b ? tensor(b, size.n, size.k) : tensor(b, size.k, size.n),
            .c = tensor(c, size.m, size.n),
            .transpose_a = transpose_a,
            .transpose_b = transpose_b};
  }
};

void check_form(const Product& product, const std::string& name) {
  const auto [m, n, k] = product.size;
  Floats c = unwritten(m * n);
  matmul(context(), product.args(c));
  check(name, c, [&](auto t) { return product.sums<decltype(t)>(); });

  const Floats before = random_floats(m * n);
  c = before;
  MatmulArgs args = product.args(c);
  args.accumulate = true;
  matmul(context(), args);
  check(name + " accumulated", c, [&](auto t) {
    auto sums = product.sums<decltype(t)>();
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
    return sums;
  });
}

// relu(A B + bias), dropped out, plus a residual; and the derivative of relu as a gate.
void check_epilogue(const Product& product, const std::string& name) {
  const auto [m, n, k] = product.size;
  const Floats bias = random_floats(n), residual = random_floats(m * n),
               gate = random_floats(m * n);
  Floats before = unwritten(m * n), c = unwritten(m * n);
  MatmulArgs args = product.args(c);
  args.bias = tensor(bias, n);
  args.pre_activation = tensor(before, m, n);
  args.activation = Activation::kRelu;
  args.gate_input = tensor(gate, m, n);
  args.gate_activation = Activation::kRelu;
  args.dropout = {.p = 0.3f, .seed = 5, .stream = 6};
  args.residual = tensor(residual, m, n);
  matmul(context(), args);
  const auto sums = [&](auto t) {
    auto sums = product.sums<decltype(t)>();
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += bias[i % n];
    return sums;
  };
  check(name + " before activation", before, sums);
  check(name + " epilogue", c, [&](auto t) {
    auto values = sums(t);
    for (size_t i = 0; i < values.size(); ++i) {
      const bool kept = before[i] > 0.0f && gate[i] > 0.0f;
      values[i] = (kept ? values[i] * dropout_at(args.dropout, i) : 0) + residual[i];
    }
    return values;
  });
}

void check_batched() {
  constexpr int64_t kBatch = 3, kM = 5, kN = 7, kK = 9;
  const Floats a = random_floats(kBatch * kM * kK), b = random_floats(kBatch * kK * kN);
  Floats c = unwritten(kBatch * kM * kN);
  batched_matmul(context(), {.a = tensor(a, kBatch, kM, kK),
                             .b = tensor(b, kBatch, kK, kN),
                             .c = tensor(c, kBatch, kM, kN)});
  check("batched_matmul", c, [&](auto t) {
    using T = decltype(t);
    Values<T> all;
    for (int64_t i = 0; i < kBatch; ++i) {
      const Product one{{kM, kN, kK},
                        false,
                        false,
                        {a.begin() + i * kM * kK, a.begin() + (i + 1) * kM * kK},
                        {b.begin() + i * kK * kN, b.begin() + (i + 1) * kK * kN}};
      const Values<T> part = one.sums<T>();
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  });
}

void check_column_sum() {
  constexpr int64_t kRows = 77, kWidth = 13;
  const Floats x = random_floats(kRows * kWidth), before = random_floats(kWidth);
  Floats out = before;
  column_sum(context(), {.x = tensor(x, kRows, kWidth), .out = tensor(out, kWidth)});
  check("column_sum", out, [&](auto t) {
    Values<decltype(t)> sums(before.begin(), before.end());
    for (int64_t i = 0; i < kRows * kWidth; ++i) sums[i % kWidth] += x[i];
    return sums;
  });
}

}  // namespace

void check_matmul() {
  for (const Sizes& size : kSizes)
    for (const auto& [transpose_a, transpose_b] :
         {std::pair{false, true}, {false, false}, {true, false}}) {
      const Product product{size, transpose_a, transpose_b, random_floats(size.m * size.k),
                            random_floats(size.k * size.n)};
      const std::string name = "matmul " + std::to_string(size.m) + "x" + std::to_string(size.n) +
                               "x" + std::to_string(size.k) + (transpose_a ? " a transposed" : "") +
                               (transpose_b ? " b transposed" : "");
      check_form(product, name);
      check_epilogue(product, name);
    }
  check_batched();
  check_column_sum();
}

}  // namespace llmcore::checking
