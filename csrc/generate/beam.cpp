// Beam search: per row a heap of its best tokens, then a merge of the few left.
#include "generate/beam.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/parallel.h"
#include "core/queue.h"
#include "generate/logits.h"
#include "ops/backend.h"
#include "ops/elementwise.h"

namespace llmcore {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace

BeamSearch::BeamSearch(const GenerationOptions& options, const std::vector<int32_t>& prompt,
                       int64_t vocab_size, int64_t most_new_tokens)
    : options_(options),
      vocab_size_(vocab_size),
      prompt_length_(static_cast<int64_t>(prompt.size())) {
  check_options(options, vocab_size);
  CHECK(most_new_tokens >= 1, ConfigError,
        "generate: the model's positions must allow at least 1 new token, got ", most_new_tokens);
  options_.max_new_tokens = std::min(options.max_new_tokens, most_new_tokens);
  width_ = options.num_beams / options.num_beam_groups;
  // Every beam may end in every stop id. A token that earlier groups chose, and there are no more
  // of those than their beams, may fall behind those that follow it.
  const int64_t looked_at = width_ * (1 + std::max<int64_t>(1, options.stop_ids.size()));
  const int64_t fallen = options.num_beams - width_;
  most_candidates_ = static_cast<size_t>(std::min(vocab_size, looked_at + fallen));
  groups_.resize(options.num_beam_groups);
  beams_.resize(1);
  beams_[0].ids = prompt;
  beams_[0].candidates.reserve(most_candidates_);
}

History BeamSearch::history(const Beam& beam) const {
  return {.ids = beam.ids.data(),
          .length = static_cast<int64_t>(beam.ids.size()),
          .prompt_length = prompt_length_};
}

bool BeamSearch::leaves_logits(int64_t beam) const {
  return llmcore::leaves_logits(options_, history(beams_[beam]));
}

bool BeamSearch::read(int64_t beam, const Choice* best) {
  std::vector<Candidate>& candidates = beams_[beam].candidates;
  candidates.clear();
  for (size_t i = 0; i < most_candidates_ && best[i].log_probability > kNever; ++i)
    candidates.push_back({.log_probability = best[i].log_probability,
                          .model_log_probability = best[i].log_probability,
                          .id = best[i].id});
  return best[0].failure == ChoiceFailure::kNone;
}

bool BeamSearch::read(int64_t beam, const float* log_probabilities, const BeamScratch& scratch) {
  if (std::isnan(log_probabilities[0])) return false;  // then all are
  std::copy_n(log_probabilities, vocab_size_, scratch.processed);
  Beam& read = beams_[beam];
  process_logits(options_, history(read), scratch.processed, vocab_size_, scratch.counts);
  keep_best(scratch.processed, read.candidates);
  for (Candidate& candidate : read.candidates)
    candidate.model_log_probability = log_probabilities[candidate.id];
  return true;
}

// A heap whose front is the worst of the best so far: most of the row fails one comparison.
void BeamSearch::keep_best(const float* log_probabilities, std::vector<Candidate>& best) const {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.log_probability != b.log_probability ? a.log_probability > b.log_probability
                                                  : a.id < b.id;
  };
  best.clear();
  float threshold = kNever;
  for (int64_t id = 0; id < vocab_size_; ++id) {
    if (!(log_probabilities[id] > threshold)) continue;
    if (best.size() == most_candidates_) {
      std::pop_heap(best.begin(), best.end(), before);
      best.pop_back();
    }
    best.push_back({.log_probability = log_probabilities[id], .id = static_cast<int32_t>(id)});
    std::push_heap(best.begin(), best.end(), before);
    if (best.size() == most_candidates_) threshold = best.front().log_probability;
  }
  std::sort_heap(best.begin(), best.end(), before);
}

// The best first, of all beams of the group; tokens_ holds what the earlier groups chose.
std::vector<BeamSearch::Continuation> BeamSearch::continuations(const Group& group) const {
  const bool diverse = options_.diversity_penalty > 0 && forced_id(options_, new_tokens_) < 0;
  std::vector<Continuation> all;
  for (int64_t b = group.begin; b < group.end; ++b)
    for (const Candidate& candidate : beams_[b].candidates) {
      double total = beams_[b].total + candidate.log_probability;
      if (diverse)
        total -= options_.diversity_penalty *
                 static_cast<double>(std::count(tokens_.begin(), tokens_.end(), candidate.id));
      all.push_back({.total = total,
                     .beam = static_cast<int32_t>(b),
                     .model_log_probability = candidate.model_log_probability,
                     .id = candidate.id});
    }
  std::sort(all.begin(), all.end(), [](const Continuation& a, const Continuation& b) {
    if (a.total != b.total) return a.total > b.total;
    return a.beam != b.beam ? a.beam < b.beam : a.id < b.id;
  });
  return all;
}

BeamSearch::Beam BeamSearch::extended(const Continuation& continuation) const {
  const Beam& parent = beams_[continuation.beam];
  Beam beam{.ids = parent.ids,
            .log_probabilities = parent.log_probabilities,
            .total = continuation.total};
  beam.ids.push_back(continuation.id);
  beam.log_probabilities.push_back(continuation.model_log_probability);
  beam.candidates.reserve(most_candidates_);
  return beam;
}

double BeamSearch::normalised(double total, int64_t length) const {
  return total / std::pow(static_cast<double>(length), options_.length_penalty);
}

void BeamSearch::finish(Group& group, const Continuation& continuation, bool stopped) const {
  const double score = normalised(continuation.total, new_tokens_ + 1);
  auto& list = group.finished;
  const auto place = std::find_if(list.begin(), list.end(), [&](const BeamHypothesis& finished) {
    return finished.score < score;
  });
  if (place == list.end() && static_cast<int64_t>(list.size()) == width_) return;
  Beam beam = extended(continuation);
  beam.ids.erase(beam.ids.begin(), beam.ids.begin() + prompt_length_);
  list.insert(place, {.ids = std::move(beam.ids),
                      .log_probabilities = std::move(beam.log_probabilities),
                      .total = continuation.total,
                      .score = score,
                      .stopped = stopped});
  if (static_cast<int64_t>(list.size()) > width_) list.pop_back();
}

// Whether the search of a group is over, given what it could go on with after this step.
bool BeamSearch::closed(const Group& group, const std::vector<Continuation>& running) const {
  if (running.empty()) return true;
  if (static_cast<int64_t>(group.finished.size()) < width_) return false;
  if (options_.early_stopping == EarlyStopping::kYes) return true;
  const bool longest =
      options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0;
  const int64_t length = longest ? options_.max_new_tokens : new_tokens_ + 1;
  return normalised(running[0].total, length) <= group.finished.back().score;
}

void BeamSearch::advance() {
  const bool last = new_tokens_ + 1 == options_.max_new_tokens;
  const auto& stop_ids = options_.stop_ids;
  std::vector<Beam> next;
  parents_.clear();
  tokens_.clear();
  for (Group& group : groups_) {
    std::vector<Continuation> running;
    int64_t rank = 0;
    for (const Continuation& continuation : continuations(group)) {
      const bool stops =
          std::find(stop_ids.begin(), stop_ids.end(), continuation.id) != stop_ids.end();
      if (!stops && !last && static_cast<int64_t>(running.size()) < width_)
        running.push_back(continuation);
      else if ((stops || last) && rank < width_)
        finish(group, continuation, stops);
      ++rank;
    }
    if (closed(group, running)) running.clear();
    group.begin = static_cast<int64_t>(next.size());
    for (const Continuation& continuation : running) {
      next.push_back(extended(continuation));
      parents_.push_back(continuation.beam);
      tokens_.push_back(continuation.id);
    }
    group.end = static_cast<int64_t>(next.size());
  }
  beams_ = std::move(next);
  ++new_tokens_;
}

bool BeamSearch::found() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return !group.finished.empty(); });
}

std::vector<BeamHypothesis> BeamSearch::best() const {
  std::vector<BeamHypothesis> all;
  for (const Group& group : groups_)
    all.insert(all.end(), group.finished.begin(), group.finished.end());
  std::stable_sort(all.begin(), all.end(), [](const BeamHypothesis& a, const BeamHypothesis& b) {
    return a.score > b.score;
  });
  if (static_cast<int64_t>(all.size()) > options_.num_return_sequences)
    all.resize(options_.num_return_sequences);
  return all;
}

namespace {

// A row of logits: whose it is.
struct Row {
  int64_t search, beam;
};

void check_sound(bool sound, const Row& row) {
  CHECK(sound, ConfigError, "generate: the logits of sequence ", row.search,
        " hold NaN or infinity: the model's weights are damaged or its training diverged");
}

// What read() of each search takes from its rows on the CPU.
void read_rows(const Context& context, const Tensor& logits, const std::vector<Row>& rows,
               const std::vector<BeamSearch*>& searches) {
  const int64_t count = logits.rows(), vocab_size = logits.cols();
  ScratchScope scope(*context.arena);
  const Tensor log_probabilities = context.arena->scratch(DType::kFloat32, count, vocab_size);
  softmax(context, {.log = true, .x = logits, .y = log_probabilities});
  const int64_t workers = std::min<int64_t>(num_threads(), count);
  const Tensor floats = context.arena->scratch(DType::kFloat32, workers, vocab_size);
  const Tensor counts = context.arena->scratch(DType::kInt32, workers, vocab_size);
  auto* sound = static_cast<bool*>(context.arena->scratch_bytes(count));
  std::fill_n(counts.as<int32_t>(), counts.numel(), 0);
  parallel_for(workers, [&](int64_t worker, int) {
    const BeamScratch scratch{.processed = floats.f32() + worker * vocab_size,
                              .counts = counts.as<int32_t>() + worker * vocab_size};
    for (int64_t row = worker; row < count; row += workers) {
      float* found = log_probabilities.f32() + row * vocab_size;
      // softmax() has zeros for a row of all -inf; here that is a beam that nothing may follow.
      if (found[0] == 0.0f && logits.f32()[row * vocab_size] == kNever)
        std::fill_n(found, vocab_size, kNever);
      sound[row] = searches[rows[row].search]->read(rows[row].beam, found, scratch);
    }
  });
  for (int64_t row = 0; row < count; ++row) check_sound(sound[row], rows[row]);
}

// The same of a GPU's rows, whose best tokens it finds where no processor changes the logits.
void read_rows_of_gpu(const Context& context, const Tensor& logits, const std::vector<Row>& rows,
                      const std::vector<BeamSearch*>& searches) {
  int64_t most = 0;
  bool as_they_are = true;
  for (const Row& row : rows) {
    const BeamSearch& search = *searches[row.search];
    most = std::max(most, search.candidates());
    as_they_are = as_they_are && search.leaves_logits(row.beam);
  }
  Buffer storage;
  if (!as_they_are || most > kMostBest)
    return read_rows(cpu_context(), on_cpu(context.queue, logits, storage), rows, searches);
  ScratchScope scope(*context.arena);
  const Tensor best = context.arena->scratch(DType::kInt8, logits.rows(), most, sizeof(Choice));
  best_tokens(context, {.logits = logits, .choices = best});
  const auto* choices = on_cpu(context.queue, best, storage).as<Choice>();
  for (size_t row = 0; row < rows.size(); ++row)
    check_sound(searches[rows[row].search]->read(rows[row].beam, choices + row * most), rows[row]);
}

}  // namespace

void advance_beams(const Context& context, const Tensor& logits,
                   const std::vector<BeamSearch*>& searches) {
  std::vector<Row> rows;
  for (size_t i = 0; i < searches.size(); ++i)
    for (int64_t beam = 0; beam < searches[i]->beams(); ++beam)
      rows.push_back({static_cast<int64_t>(i), beam});
  if (rows.empty()) return;
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t vocab_size = searches[rows[0].search]->vocab_size();
  check_tensor("generate", "logits", logits, "[beams, V]", {count, vocab_size});
  if (logits.device.type == DeviceType::kCpu)
    read_rows(context, logits, rows, searches);
  else
    read_rows_of_gpu(context, logits, rows, searches);

  for (size_t i = 0; i < searches.size(); ++i) {
    if (searches[i]->done()) continue;
    searches[i]->advance();
    CHECK(!searches[i]->done() || searches[i]->found(), ConfigError,
          "generate: nothing may follow any beam of sequence ", i,
          ": banned_ids, min_new_tokens and no_repeat_ngram_size exclude every token");
  }
}

}  // namespace llmcore
