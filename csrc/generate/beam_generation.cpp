// The loop of beam search: rows in, parents out, and the cache follows by reordering places.
#include "generate/beam_generation.h"

#include <algorithm>
#include <numeric>

#include "nn/check_batch.h"

namespace llmcore {
namespace {

std::vector<BeamSearch> make_searches(const Config& config, const std::vector<TokenIds>& prompts,
                                      const GenerationOptions& options) {
  std::vector<BeamSearch> searches;
  for (const TokenIds& prompt : prompts) {
    const int64_t room = config.max_positions - static_cast<int64_t>(prompt.size());
    searches.emplace_back(options, prompt, config.vocab_size,
                          has_bounded_positions(config) ? room : options.max_new_tokens);
  }
  return searches;
}

DecodeRoom room_for_beams(const Config& config, const std::vector<TokenIds>& prompts,
                          const std::vector<TokenIds>& sources, const GenerationOptions& options) {
  DecodeRoom room = decode_room(config, prompts, sources, options);
  room.sequences *= options.num_beams;
  return room;
}

}  // namespace

BeamGeneration::BeamGeneration(Transformer& model, const std::vector<TokenIds>& prompts,
                               const std::vector<TokenIds>& sources,
                               const GenerationOptions& options)
    : model_(model),
      prompts_(prompts),
      num_beams_(options.num_beams),
      state_(model, room_for_beams(model.config(), prompts, sources, options)),
      searches_(make_searches(model.config(), prompts, options)) {
  std::vector<int32_t> all(sources.size());
  std::vector<const TokenIds*> ids;
  for (const TokenIds& source : sources) ids.push_back(&source);
  std::iota(all.begin(), all.end(), 0);
  if (!sources.empty()) state_.encode(all, ids);
}

bool BeamGeneration::done() const {
  return std::all_of(searches_.begin(), searches_.end(),
                     [](const BeamSearch& search) { return search.done(); });
}

void BeamGeneration::step() {
  std::vector<DecodeRow> rows;
  std::vector<BeamSearch*> all;
  for (size_t i = 0; i < searches_.size(); ++i) {
    const int64_t first = static_cast<int64_t>(i) * num_beams_;
    for (int64_t beam = 0; beam < searches_[i].beams(); ++beam) {
      const TokenIds& prompt = prompts_[i];
      rows.push_back({.sequence = first + beam,
                      .ids = started_ ? &searches_[i].tokens()[beam] : prompt.data(),
                      .count = started_ ? 1 : static_cast<int64_t>(prompt.size())});
    }
    all.push_back(&searches_[i]);
  }
  started_ = true;

  const Context context = model_.context();
  KeepScope scope(*context.arena);
  const Tensor logits = context.arena->keep(DType::kFloat32, static_cast<int64_t>(rows.size()),
                                            model_.config().vocab_size);
  state_.advance(rows, logits);
  advance_beams(context, logits, all);
  for (size_t i = 0; i < searches_.size(); ++i)
    if (!searches_[i].done())
      state_.reorder(static_cast<int64_t>(i) * num_beams_, searches_[i].parents());
}

}  // namespace llmcore
