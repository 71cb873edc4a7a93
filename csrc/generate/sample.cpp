// Greedy choice and sampling: linear in the vocabulary, sums in double in a fixed order.
#include "generate/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "core/queue.h"
#include "core/random.h"
#include "ops/backend.h"
#include "ops/cross_entropy.h"

namespace llmcore {
namespace {

constexpr int kBuckets = 1024;

// One worker's memory.
struct Scratch {
  float* logits;    // [V] as processed
  int32_t* counts;  // [V] all zero between uses
  int32_t* ids;     // [V] candidates, ascending
  float* weights;   // [V] of the candidates: probability relative to the most likely one
  int32_t* bucket;  // [V] candidates of one bucket
};

// The largest logit, the lowest id where there are several; a NaN compares to nothing.
int32_t most_likely(const float* logits, int64_t vocab_size) {
  int32_t best = 0;
  for (int64_t id = 1; id < vocab_size; ++id)
    if (logits[id] > logits[best]) best = static_cast<int32_t>(id);
  return best;
}

// The tokens that may still be chosen.
class Candidates {
 public:
  Candidates(const Scratch& scratch, int64_t vocab_size, float largest)
      : logits_(scratch.logits),
        ids_(scratch.ids),
        weights_(scratch.weights),
        bucket_(scratch.bucket) {
    for (int64_t id = 0; id < vocab_size; ++id) {
      if (!std::isfinite(logits_[id])) continue;
      ids_[count_] = static_cast<int32_t>(id);
      weights_[count_++] = std::exp(logits_[id] - largest);
    }
  }

  void keep_top_k(int64_t k) {
    if (k == 0 || k >= count_) return;
    const int32_t last = crossing(static_cast<double>(k), [](float) { return 1.0; });
    keep([&](int64_t i) { return logits_[ids_[i]] >= logits_[last]; });
  }

  void keep_top_p(double p) {
    if (p >= 1.0) return;
    const int32_t last =
        crossing(p * total(), [](float weight) { return static_cast<double>(weight); });
    keep([&](int64_t i) { return !before(last, ids_[i]); });
  }

  void keep_min_p(double min_p) {
    keep([&](int64_t i) { return static_cast<double>(weights_[i]) >= min_p; });
  }

  // The candidate at `uniform`, in [0, 1), of the cumulative distribution in order of ids.
  int32_t at(double uniform) const {
    const double target = uniform * total();
    double sum = 0.0;
    for (int64_t i = 0; i + 1 < count_; ++i)
      if ((sum += weights_[i]) > target) return ids_[i];
    return ids_[count_ - 1];
  }

 private:
  // Whether a is more likely than b, by the order that settles ties.
  bool before(int32_t a, int32_t b) const {
    return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
  }

  double total() const {
    double sum = 0.0;
    for (int64_t i = 0; i < count_; ++i) sum += weights_[i];
    return sum;
  }

  template <class Predicate>
  void keep(Predicate predicate) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!predicate(i)) continue;
      ids_[kept] = ids_[i];
      weights_[kept++] = weights_[i];
    }
    count_ = kept;
  }

  // From the most likely token down, the one at which the sum of measure(weight) reaches `limit`.
  // Buckets of equal width in the logit find the neighbourhood, so that only one of them is sorted.
  template <class Measure>
  int32_t crossing(double limit, Measure measure) {
    float low = logits_[ids_[0]], high = low;
    for (int64_t i = 1; i < count_; ++i) {
      low = std::min(low, logits_[ids_[i]]);
      high = std::max(high, logits_[ids_[i]]);
    }
    const double scale = high > low ? (kBuckets - 1) / (static_cast<double>(high) - low) : 0.0;
    const auto bucket_of = [&](int64_t i) {
      return static_cast<int>((static_cast<double>(high) - logits_[ids_[i]]) * scale);
    };
    double sums[kBuckets] = {};
    for (int64_t i = 0; i < count_; ++i) sums[bucket_of(i)] += measure(weights_[i]);
    double sum = 0.0;
    int bucket = 0;
    while (bucket + 1 < kBuckets && sum + sums[bucket] < limit) sum += sums[bucket++];

    int64_t inside = 0;
    for (int64_t i = 0; i < count_; ++i)
      if (bucket_of(i) == bucket) bucket_[inside++] = static_cast<int32_t>(i);
    const auto first = [&](int32_t a, int32_t b) { return before(ids_[a], ids_[b]); };
    if (!std::is_sorted(bucket_, bucket_ + inside, first))  // equal logits are
      std::sort(bucket_, bucket_ + inside, first);
    for (int64_t i = 0; i + 1 < inside; ++i)
      if ((sum += measure(weights_[bucket_[i]])) >= limit) return ids_[bucket_[i]];
    return ids_[bucket_[inside - 1]];
  }

  const float* logits_;
  int32_t* ids_;
  float* weights_;
  int32_t* bucket_;
  int64_t count_ = 0;
};

// A uniform number in [0, 1) of 53 bits, for one token of one sequence.
double uniform_at(uint64_t seed, uint64_t sequence, int64_t position) {
  const Philox4 random = philox(seed, sequence, static_cast<uint64_t>(position));
  const uint64_t bits = (uint64_t{random.lane[0]} << 32) | random.lane[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

ChoiceFailure choose(const float* logits, int64_t vocab_size, const ChooseRow& row,
                     const Scratch& scratch, int32_t& id) {
  const GenerationOptions& options = *row.options;
  std::memcpy(scratch.logits, logits, vocab_size * sizeof(float));
  process_logits(options, row.history, scratch.logits, vocab_size, scratch.counts);
  id = most_likely(scratch.logits, vocab_size);
  const float largest = scratch.logits[id];
  if (largest == -std::numeric_limits<float>::infinity()) return ChoiceFailure::kNothingLeft;
  if (!std::isfinite(largest)) return ChoiceFailure::kNotFinite;
  if (options.do_sample) {
    Candidates candidates(scratch, vocab_size, largest);
    candidates.keep_top_k(options.top_k);
    candidates.keep_top_p(options.top_p);
    candidates.keep_min_p(options.min_p);
    id = candidates.at(uniform_at(options.seed, row.sequence, row.history.new_tokens()));
  }
  return ChoiceFailure::kNone;
}

// Rows [count, V] of a GPU's logits, copied; in a run where they follow one another.
void copy_rows(Queue* queue, const Tensor& logits, const std::vector<int64_t>& rows, float* to) {
  const int64_t width = logits.cols();
  for (size_t begin = 0, end; begin < rows.size(); begin = end) {
    for (end = begin + 1; end < rows.size() && rows[end] == rows[end - 1] + 1;) ++end;
    const int64_t count = static_cast<int64_t>(end - begin) * width;
    copy_bytes(queue, to + begin * width, logits.f32() + rows[begin] * width,
               count * static_cast<int64_t>(sizeof(float)));
  }
}

void choose_on_gpu(const Context& context, const Tensor& logits, const ChooseRow* rows,
                   Choice* choices) {
  const int64_t vocab_size = logits.cols();
  std::vector<int64_t> there, here;
  for (int64_t b = 0; b < logits.rows(); ++b)
    (leaves_logits(*rows[b].options, rows[b].history) ? there : here).push_back(b);
  const auto chosen_there = static_cast<int64_t>(there.size());
  const auto chosen_here = static_cast<int64_t>(here.size());

  const KeepScope inputs(*context.arena);
  const ScratchScope scope(*context.arena);
  std::vector<Choice> chosen(std::max(there.size(), here.size()));
  if (chosen_there > 0) {
    const Tensor settings =
        context.arena->input(DType::kInt8, chosen_there, sizeof(SampleSettings));
    for (int64_t i = 0; i < chosen_there; ++i)
      settings.host<SampleSettings>()[i] = settings_of(rows[there[i]], vocab_size, there[i], i);
    context.upload();
    const Tensor results = context.arena->scratch(DType::kInt8, chosen_there, sizeof(Choice));
    sample_tokens(context, {.logits = logits, .settings = settings, .choices = results});
    copy_bytes(context.queue, chosen.data(), results.data, results.nbytes());
  }
  Buffer copied(chosen_here * vocab_size * static_cast<int64_t>(sizeof(float)));
  copy_rows(context.queue, logits, here, static_cast<float*>(copied.data()));
  wait(context.queue);
  for (int64_t i = 0; i < chosen_there; ++i) choices[there[i]] = chosen[i];

  std::vector<ChooseRow> rows_here;
  for (int64_t b : here) rows_here.push_back(rows[b]);
  choose_tokens(cpu_context(), f32_view(copied.data(), chosen_here, vocab_size), rows_here.data(),
                chosen.data());
  for (int64_t i = 0; i < chosen_here; ++i) choices[here[i]] = chosen[i];
}

}  // namespace

SampleSettings settings_of(const ChooseRow& row, int64_t vocab_size, int64_t of_logits,
                           int64_t place) {
  const GenerationOptions& options = *row.options;
  SampleSettings settings{.top_p = 0.0,  // greedy
                          .temperature = 1.0f,
                          .row = static_cast<int32_t>(of_logits),
                          .place = static_cast<int32_t>(place)};
  if (!options.do_sample) return settings;
  settings.top_p = options.top_p;
  settings.min_p = options.min_p;
  settings.uniform = uniform_at(options.seed, row.sequence, row.history.new_tokens());
  settings.temperature = static_cast<float>(options.temperature);
  settings.top_k = static_cast<int32_t>(std::min(options.top_k, vocab_size));
  return settings;
}

void choose_tokens(const Context& context, const Tensor& logits, const ChooseRow* rows,
                   Choice* choices) {
  const int64_t batch = logits.rows(), vocab_size = logits.cols();
  check_tensor("generate", "logits", logits, "[B, V]", {batch, vocab_size});
  CHECK(vocab_size > 0, ShapeError, "generate: logits must have at least one column, got [", batch,
        ", 0]");
  if (batch == 0) return;
  if (logits.device.type != DeviceType::kCpu) return choose_on_gpu(context, logits, rows, choices);

  ScratchScope scope(*context.arena);
  const int64_t workers = std::min<int64_t>(num_threads(), batch);
  const Tensor floats = context.arena->scratch(DType::kFloat32, workers, 2, vocab_size);
  const Tensor ints = context.arena->scratch(DType::kInt32, workers, 3, vocab_size);
  const auto scratch_of = [&](int64_t worker) {
    float* f = floats.f32() + worker * 2 * vocab_size;
    int32_t* i = ints.as<int32_t>() + worker * 3 * vocab_size;
    return Scratch{.logits = f,
                   .counts = i,
                   .ids = i + vocab_size,
                   .weights = f + vocab_size,
                   .bucket = i + 2 * vocab_size};
  };
  for (int64_t worker = 0; worker < workers; ++worker)
    std::fill_n(scratch_of(worker).counts, vocab_size, 0);
  parallel_for(workers, [&](int64_t worker, int) {
    for (int64_t b = worker; b < batch; b += workers)
      choices[b].failure = choose(logits.f32() + b * vocab_size, vocab_size, rows[b],
                                  scratch_of(worker), choices[b].id);
  });

  // The cross-entropy of a choice is the negative log of its probability.
  const Tensor chosen = context.arena->scratch(DType::kInt32, batch);
  const Tensor losses = context.arena->scratch(DType::kFloat32, batch);
  for (int64_t b = 0; b < batch; ++b) chosen.as<int32_t>()[b] = choices[b].id;
  cross_entropy(context, {.logits = logits, .targets = chosen, .losses = losses});
  for (int64_t b = 0; b < batch; ++b) {
    choices[b].log_probability = -losses.f32()[b];
    if (std::isnan(choices[b].log_probability)) choices[b].failure = ChoiceFailure::kNotFinite;
  }
}

std::string failure_message(ChoiceFailure failure, int64_t sequence) {
  return failure == ChoiceFailure::kNotFinite
             ? str("generate: the logits of sequence ", sequence,
                   " hold NaN or infinity: the model's weights are damaged or its training "
                   "diverged")
             : str("generate: nothing may follow sequence ", sequence,
                   ": banned_ids, min_new_tokens and no_repeat_ngram_size exclude every token");
}

}  // namespace llmcore
