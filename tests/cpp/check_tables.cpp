// Embedding, rotary positions, AdamW and the sum of squares against plain loops.
#include "checking.h"
#include "ops/embedding.h"
#include "ops/optimizer.h"
#include "ops/rope.h"

namespace llmcore::checking {
namespace {

void check_embedding(int64_t width) {
  constexpr int64_t kRows = 23, kVocab = 11, kPositions = 8;
  const Ints ids = random_ints(kRows, kVocab), places = random_ints(kRows, kPositions);
  const Floats table = random_floats(kVocab * width), positions = random_floats(kPositions * width);
  const Floats dout = random_floats(kRows * width);
  const Dropout mask{.p = 0.25f, .seed = 11, .stream = 12};
  Floats out = unwritten(kRows * width), dtable(table.size()), dpositions(positions.size());
  embedding_forward(context(), {.ids = tensor(ids, kRows),
                                .table = tensor(table, kVocab, width),
                                .scale = 1.5f,
                                .positions = tensor(positions, kPositions, width),
                                .position_ids = tensor(places, kRows),
                                .dropout = mask,
                                .out = tensor(out, kRows, width)});
  embedding_backward(context(), {.ids = tensor(ids, kRows),
                                 .scale = 1.5f,
                                 .position_ids = tensor(places, kRows),
                                 .dropout = mask,
                                 .dout = tensor(dout, kRows, width),
                                 .dtable = tensor(dtable, kVocab, width),
                                 .dpositions = tensor(dpositions, kPositions, width)});
  const std::string name = "embedding of width " + std::to_string(width);
  check(name, out, [&](auto t) {
    using T = decltype(t);
    Values<T> result(kRows * width);
    for (int64_t i = 0; i < kRows * width; ++i)
      result[i] = (T(1.5f) * table[ids[i / width] * width + i % width] +
                   positions[places[i / width] * width + i % width]) *
                  dropout_at(mask, i);
    return result;
  });
  const auto sums = [&](const Ints& rows, int64_t count, float factor) {
    return [&, count, factor](auto t) {
      using T = decltype(t);
      Values<T> result(count * width);
      for (int64_t i = 0; i < kRows * width; ++i)
        result[rows[i / width] * width + i % width] +=
            T(factor) * (dout[i] * T(dropout_at(mask, i)));
      return result;
    };
  };
  check(name + ": dtable", dtable, sums(ids, kVocab, 1.5f));
  check(name + ": dpositions", dpositions, sums(places, kPositions, 1.0f));
}

void check_rope(int64_t rotary, int64_t width, bool interleaved, bool inverse) {
  constexpr int64_t kBatch = 2, kTokens = 5, kHeads = 3, kPositions = 9;
  const int64_t half = rotary / 2, count = kBatch * kTokens * kHeads * width;
  const Floats x = random_floats(count), cos = random_floats(kPositions * half);
  const Floats sin = random_floats(kPositions * half);
  const Ints positions = random_ints(kBatch * kTokens, kPositions);
  Floats y = unwritten(count);
  const auto view = [&](const Floats& values) {
    return HeadView{const_cast<float*>(values.data()), kTokens * kHeads * width, kHeads * width,
                    width};
  };
  rope(context(), {.batch = kBatch,
                   .rows = kTokens,
                   .heads = kHeads,
                   .head_dim = width,
                   .x = view(x),
                   .y = view(y),
                   .rotary_dim = rotary,
                   .interleaved = interleaved,
                   .inverse = inverse,
                   .cos = tensor(cos, kPositions, half),
                   .sin = tensor(sin, kPositions, half),
                   .positions = tensor(positions, kBatch, kTokens)});
  check("rope " + std::to_string(rotary) + " of " + std::to_string(width), y, [&](auto t) {
    using T = decltype(t);
    Values<T> result(x.begin(), x.end());
    for (int64_t head = 0; head < count / width; ++head)
      for (int64_t i = 0; i < half; ++i) {
        const int64_t angle = positions[head / kHeads] * half + i;
        const int64_t first = head * width + (interleaved ? 2 * i : i);
        const int64_t second = first + (interleaved ? 1 : half);
        const T a = x[first], b = x[second], c = cos[angle], s = inverse ? -sin[angle] : sin[angle];
        result[first] = a * c - b * s;
        result[second] = b * c + a * s;
      }
    return result;
  });
}

template <class T>
struct Moments {
  Values<T> param, m, v;
};

void check_adamw(int64_t count) {
  const Floats grad = random_floats(count), start = random_floats(count);
  Floats m = random_floats(count), v = random_floats(count), param = start;
  for (float& value : v) value = value * value;
  const Floats m_before = m, v_before = v;
  const AdamWSettings args{.lr = 0.01, .weight_decay = 0.1};
  constexpr float kGradScale = 0.5f;
  adamw(context(), {.factors = adamw_factors(args, 3, kGradScale),
                    .param = tensor(param, count),
                    .m = tensor(m, count),
                    .v = tensor(v, count),
                    .grad = tensor(grad, count)});
  const auto solve = [&](auto t) {
    using T = decltype(t);
    Moments<T> r{Values<T>(count), Values<T>(count), Values<T>(count)};
    const T step_size = static_cast<T>(args.lr / (1 - std::pow(args.beta1, 3)));
    const T correction = static_cast<T>(std::sqrt(1 - std::pow(args.beta2, 3)));
    for (int64_t i = 0; i < count; ++i) {
      const T g = grad[i] * T(kGradScale);
      r.m[i] = m_before[i] * T(args.beta1) + g * T(1 - args.beta1);
      r.v[i] = v_before[i] * T(args.beta2) + g * g * T(1 - args.beta2);
      r.param[i] = start[i] * T(1 - args.lr * args.weight_decay) -
                   step_size * (r.m[i] / (std::sqrt(r.v[i]) / correction + T(args.eps)));
    }
    return r;
  };
  const std::string name = "adamw of " + std::to_string(count);
  check(name + ": param", param, [&](auto t) { return solve(t).param; });
  check(name + ": m", m, [&](auto t) { return solve(t).m; });
  check(name + ": v", v, [&](auto t) { return solve(t).v; });
  check("square sum of " + std::to_string(count),
        {static_cast<float>(square_sum(context(), tensor(grad, count)))}, [&](auto t) {
          using T = decltype(t);
          T sum = 0;
          for (const float g : grad) sum += T(g) * T(g);
          return Values<T>{sum};
        });
}

}  // namespace

void check_tables() {
  for (const int64_t width : {1, 5, 32}) check_embedding(width);
  for (const bool interleaved : {false, true})
    for (const bool inverse : {false, true}) {
      check_rope(8, 8, interleaved, inverse);
      check_rope(6, 11, interleaved, inverse);
    }
  for (const int64_t count : {1, 7, 1003, 70'001}) check_adamw(count);
}

}  // namespace llmcore::checking
