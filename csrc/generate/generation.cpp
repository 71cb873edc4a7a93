// The decoding loop.
#include "generate/generation.h"

#include <algorithm>

#include "core/error.h"

namespace llmcore {
namespace {

int64_t context_limit(const Config& config, const std::vector<std::vector<int32_t>>& prompts,
                      const GenerationOptions& options) {
  int64_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max<int64_t>(longest, prompt.size());
  const int64_t wanted = longest + options.max_new_tokens;
  return config.positions == PositionKind::kNone ? wanted : std::min(wanted, config.max_positions);
}

}  // namespace

Generation::Generation(Transformer& model, const std::vector<std::vector<int32_t>>& prompts,
                       const GenerationOptions& options, bool slide)
    : model_(model),
      options_(options),
      slide_(slide),
      limit_(context_limit(model.config(), prompts, options)),
      cache_(model.config(), static_cast<int64_t>(prompts.size()), limit_) {
  check_options(options, model.config().vocab_size);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t length = static_cast<int64_t>(prompts[i].size());
    CHECK(length > 0, ShapeError, "generate: prompts[", i, "] has no tokens");
    CHECK(length <= limit_, ShapeError, "generate: prompts[", i, "] has ", length,
          " tokens, the model has positions for ", limit_,
          "; shorten it, or let the context slide (overflow='slide')");
    const auto twins = std::count(prompts.begin(), prompts.begin() + i, prompts[i]);
    running_.push_back({static_cast<int64_t>(i), static_cast<uint64_t>(twins), prompts[i], length});
  }
}

void Generation::finish(int64_t index) {
  for (Sequence& sequence : running_)
    if (sequence.index == index) sequence.ended = true;
  compact();
}

void Generation::compact() {
  for (size_t place = 0; place < running_.size();) {
    if (!running_[place].ended) {
      ++place;
      continue;
    }
    const size_t last = running_.size() - 1;
    if (place != last) {
      cache_.copy_sequence(static_cast<int64_t>(last), static_cast<int64_t>(place),
                           running_[last].cached);
      running_[place] = std::move(running_[last]);
    }
    running_.pop_back();
  }
}

void Generation::advance(const Tensor& logits) {
  Arena& arena = model_.arena();
  const int64_t batch = static_cast<int64_t>(running_.size());
  int64_t queries = 0;
  const auto fresh = [](const Sequence& s) {
    return static_cast<int64_t>(s.ids.size()) - s.begin - s.cached;
  };
  for (const Sequence& sequence : running_) queries = std::max(queries, fresh(sequence));

  const Tensor ids = arena.keep(DType::kInt32, batch, queries);
  const Tensor lengths = arena.keep(DType::kInt32, batch);
  const Tensor past = arena.keep(DType::kInt32, batch);
  std::fill_n(ids.as<int32_t>(), ids.numel(), 0);
  for (int64_t b = 0; b < batch; ++b) {
    Sequence& sequence = running_[b];
    const int64_t count = fresh(sequence);
    lengths.as<int32_t>()[b] = static_cast<int32_t>(count);
    past.as<int32_t>()[b] = static_cast<int32_t>(sequence.cached);
    std::copy_n(&sequence.ids[sequence.begin + sequence.cached], count,
                ids.as<int32_t>() + b * queries);
    sequence.cached += count;
  }
  model_.decode(ids, lengths, past, cache_.first(batch), logits);
}

bool Generation::make_room(Sequence& sequence) {
  if (static_cast<int64_t>(sequence.ids.size()) - sequence.begin < limit_) return true;
  // Positions restart at zero, so what is kept has to be read again.
  if (!slide_ || limit_ < 2) return false;
  sequence.begin = static_cast<int64_t>(sequence.ids.size()) - limit_ / 2;
  sequence.cached = 0;
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
  std::sort(tokens.begin(), tokens.end(),
            [](const GeneratedToken& a, const GeneratedToken& b) { return a.index < b.index; });
  compact();
  return tokens;
}

}  // namespace llmcore
