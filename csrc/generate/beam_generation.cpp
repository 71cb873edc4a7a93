// The loop of beam search: rows in, parents out, and the cache follows by reordering places.
#include "generate/beam_generation.h"

#include <algorithm>

#include "generate/generation.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

std::vector<BeamSearch> make_searches(const Config& config, const std::vector<TokenIds>& prompts,
                                      const GenerationOptions& options) {
  check_options(options, config.vocab_size);
  context_limit(config, prompts, options);  // refuses prompts that do not fit
  std::vector<BeamSearch> searches;
  for (const TokenIds& prompt : prompts) {
    const int64_t room = config.max_positions - static_cast<int64_t>(prompt.size());
    searches.emplace_back(options, prompt, config.vocab_size,
                          has_bounded_positions(config) ? room : options.max_new_tokens);
  }
  return searches;
}

// Every beam is about the source of its prompt.
std::vector<int32_t> sources_of_beams(size_t sources, int64_t num_beams) {
  std::vector<int32_t> source_of;
  for (size_t i = 0; i < sources; ++i)
    source_of.insert(source_of.end(), num_beams, static_cast<int32_t>(i));
  return source_of;
}

}  // namespace

BeamGeneration::BeamGeneration(Transformer& model, const std::vector<TokenIds>& prompts,
                               const std::vector<TokenIds>& sources,
                               const GenerationOptions& options)
    : model_(model),
      prompts_(prompts),
      num_beams_(options.num_beams),
      searches_(make_searches(model.config(), prompts, options)),
      state_(model, static_cast<int64_t>(prompts.size()) * num_beams_,
             context_limit(model.config(), prompts, options), sources,
             sources_of_beams(sources.size(), num_beams_)) {}

bool BeamGeneration::done() const {
  return std::all_of(searches_.begin(), searches_.end(),
                     [](const BeamSearch& search) { return search.done(); });
}

void BeamGeneration::step() {
  std::vector<DecodeRow> rows;
  std::vector<BeamSearch*> running;
  for (size_t i = 0; i < searches_.size(); ++i) {
    const int64_t first = static_cast<int64_t>(i) * num_beams_;
    for (int64_t beam = 0; beam < searches_[i].beams(); ++beam) {
      const TokenIds& prompt = prompts_[i];
      rows.push_back({.sequence = first + beam,
                      .ids = started_ ? &searches_[i].tokens()[beam] : prompt.data(),
                      .count = started_ ? 1 : static_cast<int64_t>(prompt.size())});
    }
    if (!searches_[i].done()) running.push_back(&searches_[i]);
  }
  started_ = true;

  const Context context = model_.context();
  KeepScope scope(*context.arena);
  const Tensor logits = context.arena->keep(DType::kFloat32, static_cast<int64_t>(rows.size()),
                                            model_.config().vocab_size);
  state_.advance(rows, logits);
  advance_beams(context, logits, running);
  for (size_t i = 0; i < searches_.size(); ++i)
    if (!searches_[i].done())
      state_.reorder(static_cast<int64_t>(i) * num_beams_, searches_[i].parents());
}

}  // namespace llmcore
