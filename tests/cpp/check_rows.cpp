// Norms, activations, softmax, losses and elementwise operations against plain loops.
#include "checking.h"
#include "core/convert.h"
#include "ops/activation.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/norm.h"

namespace llmcore::checking {
namespace {

constexpr int64_t kRows = 7;
constexpr int64_t kWidths[] = {1, 3, 4, 37, 301};

std::string with_width(const std::string& name, int64_t width) {
  return name + " of width " + std::to_string(width);
}

template <class T>
struct NormResults {
  Values<T> y, dx, dweight, dbias;
};

void check_norm(NormKind kind, int64_t width) {
  const bool layer = kind == NormKind::kLayer;
  constexpr float kEps = 1e-5f;
  const Floats x = random_floats(kRows * width), dy = random_floats(kRows * width);
  const Floats weight = random_floats(width), bias = random_floats(width);
  Floats y = unwritten(x.size()), mean = unwritten(kRows), rstd = unwritten(kRows);
  Floats dx = unwritten(x.size()), dweight(width), dbias(width);
  norm_forward(context(), {.kind = kind,
                           .eps = kEps,
                           .x = tensor(x, kRows, width),
                           .weight = tensor(weight, width),
                           .bias = layer ? tensor(bias, width) : Tensor{},
                           .y = tensor(y, kRows, width),
                           .mean = layer ? tensor(mean, kRows) : Tensor{},
                           .rstd = tensor(rstd, kRows)});
  norm_backward(context(), {.kind = kind,
                            .dy = tensor(dy, kRows, width),
                            .x = tensor(x, kRows, width),
                            .weight = tensor(weight, width),
                            .mean = layer ? tensor(mean, kRows) : Tensor{},
                            .rstd = tensor(rstd, kRows),
                            .dx = tensor(dx, kRows, width),
                            .dweight = tensor(dweight, width),
                            .dbias = layer ? tensor(dbias, width) : Tensor{}});
  const auto solve = [&](auto t) {
    using T = decltype(t);
    const T count = static_cast<T>(width);
    NormResults<T> r{Values<T>(x.size()), Values<T>(x.size()), Values<T>(width), Values<T>(width)};
    for (int64_t n = 0; n < kRows; ++n) {
      const float *row = x.data() + n * width, *gradient = dy.data() + n * width;
      T centre = 0, square = 0, mean_g = 0, mean_gx = 0;
      for (int64_t c = 0; layer && c < width; ++c) centre += row[c] / count;
      for (int64_t c = 0; c < width; ++c) square += (row[c] - centre) * (row[c] - centre) / count;
      const T scale = 1 / std::sqrt(square + T(kEps));
      const auto normal = [&](int64_t c) { return (row[c] - centre) * scale; };
      for (int64_t c = 0; c < width; ++c) {
        r.y[n * width + c] = normal(c) * weight[c] + (layer ? bias[c] : 0);
        r.dweight[c] += gradient[c] * normal(c);
        r.dbias[c] += gradient[c];
        if (layer) mean_g += gradient[c] * T(weight[c]) / count;
        mean_gx += gradient[c] * T(weight[c]) * normal(c) / count;
      }
      for (int64_t c = 0; c < width; ++c)
        r.dx[n * width + c] = (gradient[c] * T(weight[c]) - mean_g - normal(c) * mean_gx) * scale;
    }
    return r;
  };
  const std::string name = with_width(layer ? "layer norm" : "rms norm", width);
  check(name + ": y", y, [&](auto t) { return solve(t).y; });
  check(name + ": dx", dx, [&](auto t) { return solve(t).dx; });
  check(name + ": dweight", dweight, [&](auto t) { return solve(t).dweight; });
  if (layer) check(name + ": dbias", dbias, [&](auto t) { return solve(t).dbias; });
}

// f(x) and f'(x).
template <class T>
struct Point {
  T value, slope;
};

template <class T>
Point<T> activation_at(Activation activation, T x) {
  const T kPi = T(3.14159265358979323846L);
  switch (activation) {
    case Activation::kRelu:
      return {x > 0 ? x : 0, T(x > 0 ? 1 : 0)};
    case Activation::kSilu: {
      const T s = 1 / (1 + std::exp(-x));
      return {x * s, s * (1 + x * (1 - s))};
    }
    case Activation::kGelu: {
      const T cumulative = std::erfc(-x / std::sqrt(T(2))) / 2;
      return {x * cumulative, cumulative + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi)};
    }
    default: {  // gelu_tanh, by the sigmoid of twice the argument
      const T a = 2 * std::sqrt(2 / kPi), b = a * T(0.044715L);
      const T s = 1 / (1 + std::exp(-x * (a + b * x * x)));
      return {x * s, s * (1 + x * (a + 3 * b * x * x) * (1 - s))};
    }
  }
}

void check_activation(Activation activation, const std::string& name) {
  constexpr int64_t kCount = 1001;
  Floats x = random_floats(kCount), y = unwritten(kCount), dx = unwritten(kCount);
  const Floats dy = random_floats(kCount), up = random_floats(kCount);
  for (float& value : x) value *= 6.0f;
  Floats gated = unwritten(kCount), dgate = unwritten(kCount), dup = unwritten(kCount);
  const auto flat = [&](const Floats& values) { return tensor(values, kCount); };
  const auto rows = [&](const Floats& values) { return tensor(values, 7, kCount / 7); };
  activation_forward(context(), {.activation = activation, .x = flat(x), .y = flat(y)});
  activation_backward(context(),
                      {.activation = activation, .dy = flat(dy), .x = flat(x), .dx = flat(dx)});
  gated_forward(context(),
                {.activation = activation, .gate = rows(x), .up = rows(up), .y = rows(gated)});
  gated_backward(context(), {.activation = activation,
                             .dy = rows(dy),
                             .gate = rows(x),
                             .up = rows(up),
                             .dgate = rows(dgate),
                             .dup = rows(dup)});
  const auto each = [&](auto f) {
    return [&, f](auto t) {
      using T = decltype(t);
      Values<T> result(kCount);
      for (int64_t i = 0; i < kCount; ++i)
        result[i] = f(activation_at<T>(activation, T(x[i])), T(dy[i]), T(up[i]));
      return result;
    };
  };
  check(name, y, each([](auto p, auto, auto) { return p.value; }));
  check(name + " backward", dx, each([](auto p, auto d, auto) { return d * p.slope; }));
  check(name + " gated", gated, each([](auto p, auto, auto u) { return p.value * u; }));
  check(name + " dgate", dgate, each([](auto p, auto d, auto u) { return d * u * p.slope; }));
  check(name + " dup", dup, each([](auto p, auto d, auto) { return d * p.value; }));
}

template <class T>
Values<T> softmax_rows(const Floats& x, int64_t width, bool of_log) {
  Values<T> y(x.size());
  for (size_t begin = 0; begin < x.size(); begin += width) {
    T highest = x[begin], sum = 0;
    for (int64_t c = 0; c < width; ++c) highest = std::fmax(highest, T(x[begin + c]));
    for (int64_t c = 0; c < width; ++c) sum += std::exp(x[begin + c] - highest);
    for (int64_t c = 0; c < width; ++c)
      y[begin + c] =
          of_log ? x[begin + c] - highest - std::log(sum) : std::exp(x[begin + c] - highest) / sum;
  }
  return y;
}

void check_softmax(bool of_log, int64_t width) {
  const Floats x = random_floats(kRows * width), dy = random_floats(kRows * width);
  Floats y = unwritten(x.size()), dx = unwritten(x.size());
  const auto rows = [&](const Floats& values) { return tensor(values, kRows, width); };
  softmax(context(), {.log = of_log, .x = rows(x), .y = rows(y)});
  softmax_backward(context(), {.log = of_log, .dy = rows(dy), .y = rows(y), .dx = rows(dx)});
  const std::string name = with_width(of_log ? "log softmax" : "softmax", width);
  check(name, y, [&](auto t) { return softmax_rows<decltype(t)>(x, width, of_log); });
  check(name + " backward", dx, [&](auto t) {
    using T = decltype(t);
    Values<T> result(x.size());
    for (size_t begin = 0; begin < x.size(); begin += width) {
      T sum = 0;
      for (int64_t c = 0; c < width; ++c) sum += dy[begin + c] * (of_log ? T(1) : T(y[begin + c]));
      for (size_t i = begin; i < begin + width; ++i)
        result[i] = of_log ? dy[i] - std::exp(T(y[i])) * sum : y[i] * (dy[i] - sum);
    }
    return result;
  });
}

void check_cross_entropy(float smoothing, int64_t width) {
  const Floats logits = random_floats(kRows * width), row_scale = random_floats(kRows);
  Ints targets = random_ints(kRows, static_cast<int32_t>(width));
  targets[kRows / 2] = -1;  // ignored
  Floats losses = unwritten(kRows), dlogits = unwritten(logits.size());
  cross_entropy(context(), {.logits = tensor(logits, kRows, width),
                            .targets = tensor(targets, kRows),
                            .label_smoothing = smoothing,
                            .losses = tensor(losses, kRows),
                            .row_scale = tensor(row_scale, kRows),
                            .dlogits = tensor(dlogits, kRows, width)});
  const std::string name = with_width("cross entropy", width);
  const auto share = [&](auto t, int64_t n, int64_t c) {  // of class c in row n's target
    using T = decltype(t);
    if (targets[n] < 0) return T(0);
    return T(smoothing) / T(width) + (targets[n] == c ? 1 - T(smoothing) : T(0));
  };
  check(name, losses, [&](auto t) {
    using T = decltype(t);
    const Values<T> logs = softmax_rows<T>(logits, width, true);
    Values<T> result(kRows);
    for (int64_t i = 0; i < kRows * width; ++i)
      result[i / width] -= share(t, i / width, i % width) * logs[i];
    return result;
  });
  check(name + " gradient", dlogits, [&](auto t) {
    Values<decltype(t)> result = softmax_rows<decltype(t)>(logits, width, false);
    for (int64_t i = 0; i < kRows * width; ++i) {
      const int64_t n = i / width;
      result[i] = targets[n] < 0 ? 0 : (result[i] - share(t, n, i % width)) * row_scale[n];
    }
    return result;
  });
}

// These have one right answer, bit for bit.
void check_elementwise(int64_t count) {
  const Floats x = random_floats(count), residual = random_floats(count);
  Floats y = unwritten(count), wanted(count);
  const auto flat = [&](const Floats& values) { return tensor(values, count); };
  const auto equal = [&](const std::string& name, auto expected) {
    for (int64_t i = 0; i < count; ++i) wanted[i] = expected(i);
    check_equal(name + " of " + std::to_string(count), y, wanted);
  };
  add(context(), {.a = flat(x), .b = flat(residual), .y = flat(y)});
  equal("add", [&](int64_t i) { return x[i] + residual[i]; });
  scale(context(), {.factor = 0.3f, .x = flat(x), .y = flat(y)});
  equal("scale", [&](int64_t i) { return x[i] * 0.3f; });
  fill(context(), {.value = 2.5f, .y = flat(y)});
  equal("fill", [](int64_t) { return 2.5f; });

  // Starting anywhere in a block of four; kept elements are doubled, which rounds nothing.
  for (const uint64_t offset : {0, 1, 6, 1023}) {
    const Dropout mask{.p = 0.5f, .seed = uint64_t{9} << 33 | 7, .stream = uint64_t{3} << 40 | 1};
    dropout(context(), {.dropout = mask, .offset = offset, .x = flat(x), .y = flat(y)});
    equal("dropout from " + std::to_string(offset),
          [&](int64_t i) { return x[i] * dropout_at(mask, offset + i); });
    dropout(context(), {.dropout = mask,
                        .offset = offset,
                        .x = flat(x),
                        .residual = flat(residual),
                        .y = flat(y)});
    equal("dropout and residual from " + std::to_string(offset),
          [&](int64_t i) { return x[i] * dropout_at(mask, offset + i) + residual[i]; });
  }
}

// Every bit pattern of 16 bits widened, and narrowed again, as the core's own conversion does it.
void check_casts() {
  constexpr int64_t kCount = 1 << 16;
  std::vector<uint16_t> bits(kCount), narrow(kCount), wanted(kCount);
  for (int64_t i = 0; i < kCount; ++i) bits[i] = static_cast<uint16_t>(i);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    Floats wide = unwritten(kCount);
    cast(context(), {.x = tensor_view(bits.data(), dtype, kCount), .y = tensor(wide, kCount)});
    bool same = true;
    for (int64_t i = 0; i < kCount; ++i) {
      const float expected =
          dtype == DType::kFloat16 ? to_float(Float16{bits[i]}) : to_float(BFloat16{bits[i]});
      same &= wide[i] == expected || (std::isnan(wide[i]) && std::isnan(expected));
      wide[i] *= 1.0f + 0x1p-9f;  // between two of them
      wanted[i] = dtype == DType::kFloat16 ? to_float16(wide[i]).bits : to_bfloat16(wide[i]).bits;
    }
    cast(context(), {.x = tensor(wide, kCount), .y = tensor_view(narrow.data(), dtype, kCount)});
    for (int64_t i = 0; i < kCount; ++i) same &= narrow[i] == wanted[i] || std::isnan(wide[i]);
    report(std::string("cast of ") + dtype_name(dtype), same);
  }
}

void check_gather(int64_t width) {
  const Ints index{0, 2, 2, 5};
  const int64_t count = static_cast<int64_t>(index.size());
  const Floats x = random_floats(kRows * width);
  Floats gathered = unwritten(count * width), scattered = unwritten(x.size());
  Floats wanted(gathered.size()), sums(x.size());
  gather_rows(context(), {.x = tensor(x, kRows, width),
                          .index = tensor(index, count),
                          .y = tensor(gathered, count, width)});
  scatter_rows(context(), {.x = tensor(gathered, count, width),
                           .index = tensor(index, count),
                           .y = tensor(scattered, kRows, width)});
  for (int64_t i = 0; i < count * width; ++i) {
    wanted[i] = x[index[i / width] * width + i % width];
    sums[index[i / width] * width + i % width] += wanted[i];
  }
  check_equal(with_width("gather", width), gathered, wanted);
  check_equal(with_width("scatter", width), scattered, sums);
}

}  // namespace

void check_rows() {
  for (const int64_t width : kWidths) {
    for (const NormKind kind : {NormKind::kLayer, NormKind::kRms})
      if (width > 1 || kind == NormKind::kRms) check_norm(kind, width);
    for (const bool of_log : {false, true}) check_softmax(of_log, width);
    for (const float smoothing : {0.0f, 0.1f}) check_cross_entropy(smoothing, width);
    check_gather(width);
    check_elementwise(width);
  }
  check_activation(Activation::kRelu, "relu");
  check_activation(Activation::kSilu, "silu");
  check_activation(Activation::kGelu, "gelu");
  check_activation(Activation::kGeluTanh, "gelu_tanh");
  check_elementwise(40'003);
  check_casts();
}

}  // namespace llmcore::checking
