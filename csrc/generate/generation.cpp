// The decoding loop.
#include "generate/generation.h"

#include <algorithm>

#include "core/error.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

std::vector<int32_t> own_sources(size_t count) {
  std::vector<int32_t> sources(count);
  for (size_t i = 0; i < count; ++i) sources[i] = static_cast<int32_t>(i);
  return sources;
}

const GenerationOptions& checked(const GenerationOptions& options, const Config& config) {
  check_options(options, config.vocab_size);
  return options;
}

}  // namespace

int64_t context_limit(const Config& config, const std::vector<TokenIds>& prompts,
                      const GenerationOptions& options) {
  int64_t longest = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    CHECK(!prompts[i].empty(), ShapeError, "generate: prompts[", i, "] has no tokens");
    longest = std::max<int64_t>(longest, prompts[i].size());
  }
  if (!has_bounded_positions(config)) return longest + options.max_new_tokens;
  for (size_t i = 0; i < prompts.size(); ++i)
    CHECK(static_cast<int64_t>(prompts[i].size()) <= config.max_positions, ShapeError,
          "generate: prompts[", i, "] has ", prompts[i].size(),
          " tokens, the model has positions for ", config.max_positions,
          "; shorten it, or let the context slide (overflow='slide')");
  return std::min(longest + options.max_new_tokens, config.max_positions);
}

Generation::Generation(Transformer& model, const std::vector<TokenIds>& prompts,
                       const std::vector<TokenIds>& sources, const GenerationOptions& options,
                       bool slide)
    : model_(model),
      options_(checked(options, model.config())),
      slide_(slide),
      limit_(context_limit(model.config(), prompts, options)),
      state_(model, static_cast<int64_t>(prompts.size()), limit_, sources,
             own_sources(sources.size())) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    uint64_t twins = 0;
    for (size_t j = 0; j < i; ++j)
      twins += prompts[j] == prompts[i] && (sources.empty() || sources[j] == sources[i]);
    running_.push_back({.index = static_cast<int64_t>(i),
                        .twin = twins,
                        .ids = prompts[i],
                        .prompt_length = static_cast<int64_t>(prompts[i].size())});
  }
}

void Generation::finish(int64_t index) {
  for (Sequence& sequence : running_)
    if (sequence.index == index) sequence.ended = true;
  drop_ended();
}

void Generation::drop_ended() {
  std::erase_if(running_, [](const Sequence& sequence) { return sequence.ended; });
}

void Generation::advance(const Tensor& logits) {
  std::vector<DecodeRow> rows;
  for (const Sequence& sequence : running_) {
    const int64_t begin = sequence.begin + state_.seen(sequence.index);
    rows.push_back({.sequence = sequence.index,
                    .ids = sequence.ids.data() + begin,
                    .count = static_cast<int64_t>(sequence.ids.size()) - begin});
  }
  state_.advance(rows, logits);
}

bool Generation::make_room(Sequence& sequence) {
  if (static_cast<int64_t>(sequence.ids.size()) - sequence.begin < limit_) return true;
  // Positions restart at zero, so what is kept has to be read again.
  if (!slide_ || limit_ < 2) return false;
  sequence.begin = static_cast<int64_t>(sequence.ids.size()) - limit_ / 2;
  state_.forget(sequence.index);
  return true;
}

GeneratedToken Generation::extend(Sequence& sequence, const Choice& choice) {
  sequence.ids.push_back(choice.id);
  const bool stop = std::find(options_.stop_ids.begin(), options_.stop_ids.end(), choice.id) !=
                    options_.stop_ids.end();
  const int64_t added = static_cast<int64_t>(sequence.ids.size()) - sequence.prompt_length;
  Finish finish = Finish::kNo;
  if (stop)
    finish = Finish::kStop;
  else if (added >= options_.max_new_tokens || !make_room(sequence))
    finish = Finish::kLength;
  sequence.ended = finish != Finish::kNo;
  return {sequence.index, choice.id, choice.log_probability, finish};
}

std::vector<GeneratedToken> Generation::step() {
  const Context context = model_.context();
  KeepScope scope(*context.arena);
  const Tensor logits = context.arena->keep(DType::kFloat32, static_cast<int64_t>(running_.size()),
                                            model_.config().vocab_size);
  advance(logits);
  std::vector<ChooseRow> rows;
  for (const Sequence& sequence : running_)
    rows.push_back({.history = {.ids = sequence.ids.data(),
                                .length = static_cast<int64_t>(sequence.ids.size()),
                                .prompt_length = sequence.prompt_length},
                    .sequence = sequence.twin});
  std::vector<Choice> choices(running_.size());
  choose_tokens(context, options_, logits, rows.data(), choices.data());

  std::vector<GeneratedToken> tokens;
  for (size_t place = 0; place < running_.size(); ++place)
    tokens.push_back(extend(running_[place], choices[place]));
  drop_ended();
  return tokens;
}

}  // namespace llmcore
