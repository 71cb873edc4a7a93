// The logits processors, each a function, and the order they run in.
#include "generate/logits.h"

#include <algorithm>
#include <limits>

namespace llmcore {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// One row of logits and all that a processor may look at.
struct Row {
  const GenerationOptions& options;
  const History& history;
  float* logits;  // [V]
  int64_t vocab_size;
  int32_t* counts;  // [V], all zero between processors

  bool knows(int32_t id) const { return id >= 0 && id < vocab_size; }

  // visit(id, times) once for every token among ids[begin, length).
  template <class Visit>
  void for_each_distinct(int64_t begin, Visit visit) const {
    for (int64_t i = begin; i < history.length; ++i)
      if (knows(history.ids[i])) ++counts[history.ids[i]];
    for (int64_t i = begin; i < history.length; ++i) {
      const int32_t id = history.ids[i];
      if (!knows(id) || counts[id] == 0) continue;
      visit(id, counts[id]);
      counts[id] = 0;
    }
  }
};

void penalise_repetition(const Row& row) {
  const auto penalty = static_cast<float>(row.options.repetition_penalty);
  if (penalty == 1.0f) return;
  row.for_each_distinct(0, [&](int32_t id, int32_t) {
    float& logit = row.logits[id];
    logit = logit < 0 ? logit * penalty : logit / penalty;
  });
}

void penalise_presence(const Row& row) {
  const double presence = row.options.presence_penalty, frequency = row.options.frequency_penalty;
  if (presence == 0 && frequency == 0) return;
  row.for_each_distinct(row.history.prompt_length, [&](int32_t id, int32_t times) {
    row.logits[id] -= static_cast<float>(presence + frequency * times);
  });
}

void forbid_repeated_ngrams(const Row& row) {
  const int64_t size = row.options.no_repeat_ngram_size, length = row.history.length;
  if (size == 0 || length < size) return;
  const int32_t* ids = row.history.ids;
  const int32_t* last = ids + length - (size - 1);  // the n-gram whose end is to be chosen
  for (int64_t i = 0; i + size <= length; ++i)
    if (std::equal(last, ids + length, ids + i) && row.knows(ids[i + size - 1]))
      row.logits[ids[i + size - 1]] = kNever;
}

void forbid_early_stop(const Row& row) {
  if (row.history.new_tokens() < row.options.min_new_tokens)
    for (int32_t id : row.options.stop_ids) row.logits[id] = kNever;
}

void forbid_banned(const Row& row) {
  for (int32_t id : row.options.banned_ids) row.logits[id] = kNever;
}

void force(const Row& row) {
  const int32_t id = forced_id(row.options, row.history.new_tokens());
  if (id < 0) return;
  std::fill(row.logits, row.logits + row.vocab_size, kNever);
  row.logits[id] = 0.0f;
}

void divide_by_temperature(const Row& row) {
  const auto temperature = static_cast<float>(row.options.temperature);
  if (!row.options.do_sample || temperature == 1.0f) return;
  for (int64_t i = 0; i < row.vocab_size; ++i) row.logits[i] /= temperature;
}

constexpr void (*kChain[])(const Row&) = {
    penalise_repetition,   penalise_presence, forbid_repeated_ngrams,
    forbid_early_stop,     forbid_banned,     force,
    divide_by_temperature,
};

}  // namespace

int32_t forced_id(const GenerationOptions& options, int64_t place) {
  if (options.forced_eos_id >= 0 && place + 1 == options.max_new_tokens)
    return options.forced_eos_id;
  return place < static_cast<int64_t>(options.forced_ids.size()) ? options.forced_ids[place] : -1;
}

bool leaves_logits(const GenerationOptions& options, const History& history) {
  const int64_t place = history.new_tokens();
  return static_cast<float>(options.repetition_penalty) == 1.0f && options.presence_penalty == 0 &&
         options.frequency_penalty == 0 &&
         (options.no_repeat_ngram_size == 0 || history.length < options.no_repeat_ngram_size) &&
         (place >= options.min_new_tokens || options.stop_ids.empty()) &&
         options.banned_ids.empty() && forced_id(options, place) < 0;
}

void process_logits(const GenerationOptions& options, const History& history, float* logits,
                    int64_t vocab_size, int32_t* counts) {
  const Row row{options, history, logits, vocab_size, counts};
  for (const auto processor : kChain) processor(row);
}

}  // namespace llmcore
