// Attention, forward and backward, against plain loops over all pairs of queries and keys.
#include <algorithm>

#include "checking.h"
#include "ops/attention.h"

namespace llmcore::checking {
namespace {

struct Case {
  const char* name;
  int64_t queries, keys, heads, kv_heads, width;
  bool causal;
  int64_t window;  // keys to the left, or -1
  bool ragged;
  float softcap, dropout;
};
constexpr Case kCases[] = {
    {"one query", 1, 3, 1, 1, 4, false, -1, false, 0.0f, 0.0f},
    {"bidirectional", 9, 13, 2, 2, 5, false, -1, true, 0.0f, 0.0f},
    {"causal", 70, 70, 2, 1, 12, true, -1, false, 0.0f, 0.0f},
    {"grouped window", 33, 33, 4, 2, 7, true, 6, true, 0.0f, 0.0f},
    {"softcap", 19, 19, 2, 2, 16, true, -1, false, 3.0f, 0.0f},
    {"dropout", 21, 21, 3, 3, 8, true, -1, false, 0.0f, 0.3f},
};
constexpr int64_t kBatch = 2;

template <class T>
struct Results {
  Values<T> out, softmax, dq, dk, dv;
};

struct Problem {
  const Case& c;
  Floats q, k, v, dout;
  Ints lengths;
  AttentionArgs args;

  explicit Problem(const Case& config)
      : c(config),
        q(random_floats(kBatch * c.queries * c.heads * c.width)),
        k(random_floats(kBatch * c.keys * c.kv_heads * c.width)),
        v(random_floats(k.size())),
        dout(random_floats(q.size())),
        lengths{static_cast<int32_t>(c.keys), static_cast<int32_t>((c.keys + 1) / 2)} {
    args = {.batch = kBatch,
            .queries = c.queries,
            .keys = c.keys,
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.width,
            .value_dim = c.width,
            .q = heads_of(q, c.queries, c.heads),
            .k = heads_of(k, c.keys, c.kv_heads),
            .v = heads_of(v, c.keys, c.kv_heads),
            .scale = 1.3f / std::sqrt(static_cast<float>(c.width)),
            .softcap = c.softcap,
            .causal = c.causal,
            .window_left = c.window,
            .kv_lengths = c.ragged ? tensor_view(lengths.data(), DType::kInt32, kBatch) : Tensor{},
            .dropout = {.p = c.dropout, .seed = 3, .stream = 4}};
  }

  HeadView heads_of(const Floats& values, int64_t rows, int64_t heads) const {
    return {const_cast<float*>(values.data()), rows * heads * c.width, heads * c.width, c.width};
  }

  bool sees(int64_t b, int64_t i, int64_t j) const {
    return (!c.ragged || j < lengths[b]) && (!c.causal || j <= i) &&
           (c.window < 0 || j >= i - c.window);
  }

  template <class T>
  Results<T> solve() const {
    Results<T> r{Values<T>(q.size()), Values<T>(kBatch * c.heads * c.queries), Values<T>(q.size()),
                 Values<T>(k.size()), Values<T>(k.size())};
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t i = 0; i < c.queries; ++i) add_query(b, h, i, r);
    return r;
  }

  template <class T>
  void add_query(int64_t b, int64_t h, int64_t i, Results<T>& r) const {
    const int64_t row = (b * c.heads + h) * c.queries + i;
    const int64_t at_q = ((b * c.queries + i) * c.heads + h) * c.width;
    const auto at_k = [&](int64_t j) {
      return ((b * c.keys + j) * c.kv_heads + h / (c.heads / c.kv_heads)) * c.width;
    };
    const auto dot = [&](const Floats& x, int64_t from, const Floats& y, int64_t to) {
      T sum = 0;
      for (int64_t d = 0; d < c.width; ++d) sum += T(x[from + d]) * T(y[to + d]);
      return sum;
    };
    Values<T> weight(c.keys), slope(c.keys, T(1));
    T highest = -INFINITY, total = 0;
    for (int64_t j = 0; j < c.keys; ++j) {
      weight[j] = sees(b, i, j) ? dot(q, at_q, k, at_k(j)) * T(args.scale) : T(-INFINITY);
      if (c.softcap > 0.0f && sees(b, i, j)) {
        const T bent = std::tanh(weight[j] / T(c.softcap));
        weight[j] = bent * T(c.softcap);
        slope[j] = 1 - bent * bent;
      }
      highest = std::max(highest, weight[j]);
    }
    r.softmax[2 * row] = highest;
    if (std::isinf(highest)) return;  // it sees nothing: zeros
    for (T& w : weight) total += w = std::exp(w - highest);
    r.softmax[2 * row + 1] = std::log(total);
    T delta = 0;
    Values<T> dweight(c.keys), kept(c.keys);
    for (int64_t j = 0; j < c.keys; ++j) {
      weight[j] /= total;
      const T factor = dropout_at(args.dropout, static_cast<uint64_t>(row * c.keys + j));
      kept[j] = weight[j] * factor;
      dweight[j] = dot(dout, at_q, v, at_k(j)) * factor;
      delta += weight[j] * dweight[j];
    }
    for (int64_t j = 0; j < c.keys; ++j) {
      const T dscore = weight[j] * (dweight[j] - delta) * slope[j] * T(args.scale);
      for (int64_t d = 0; d < c.width; ++d) {
        r.out[at_q + d] += kept[j] * v[at_k(j) + d];
        r.dq[at_q + d] += dscore * k[at_k(j) + d];
        r.dk[at_k(j) + d] += dscore * q[at_q + d];
        r.dv[at_k(j) + d] += kept[j] * dout[at_q + d];
      }
    }
  }
};

void check_case(const Case& c) {
  const Problem problem(c);
  Floats out = unwritten(problem.q.size()), softmax = unwritten(2 * kBatch * c.heads * c.queries);
  AttentionForwardArgs forward{problem.args};
  forward.out = problem.heads_of(out, c.queries, c.heads);
  forward.softmax = softmax.data();
  attention_forward(context(), forward);

  Floats dq = unwritten(problem.q.size()), dk = unwritten(problem.k.size());
  Floats dv = unwritten(problem.k.size());
  AttentionBackwardArgs backward{problem.args};
  backward.out = forward.out;
  backward.softmax = softmax.data();
  backward.dout = problem.heads_of(problem.dout, c.queries, c.heads);
  backward.dq = problem.heads_of(dq, c.queries, c.heads);
  backward.dk = problem.heads_of(dk, c.keys, c.kv_heads);
  backward.dv = problem.heads_of(dv, c.keys, c.kv_heads);
  attention_backward(context(), backward);

  const auto part = [&](auto member) {
    return [&problem, member](auto t) { return member(problem.solve<decltype(t)>()); };
  };
  const std::string name = std::string("attention ") + c.name;
  check(name + ": out", out, part([](auto r) { return r.out; }));
  check(name + ": softmax", softmax, part([](auto r) { return r.softmax; }));
  check(name + ": dq", dq, part([](auto r) { return r.dq; }));
  check(name + ": dk", dk, part([](auto r) { return r.dk; }));
  check(name + ": dv", dv, part([](auto r) { return r.dv; }));
}

}  // namespace

void check_attention() {
  for (const Case& c : kCases) check_case(c);
}

}  // namespace llmcore::checking
