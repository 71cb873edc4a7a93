// Looking n-grams up, and the short greedy loop of a draft model.
#include "generate/draft.h"

#include <algorithm>

#include "core/error.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

// A text's part of what the draft reads at a time is no less than this.
constexpr int64_t kLeastShare = 32;
// A pass is no longer, so that its activations stay small.
constexpr int64_t kMostTokensInPass = 2048;

// Where the last occurrence of [first, last) in `ids` ends, before its own end; 0 for none.
int64_t end_of_last(const TokenIds& ids, const int32_t* first, const int32_t* last) {
  for (int64_t end = static_cast<int64_t>(ids.size()) - 1; end >= last - first; --end)
    if (std::equal(first, last, ids.begin() + end - (last - first))) return end;
  return 0;
}

DecodeRoom room_of_draft(const Config& draft, const Config& model, DecodeRoom room) {
  CHECK(draft.num_encoder_layers == 0 && model.num_encoder_layers == 0, ConfigError,
        "generate: a draft model needs a model that, like itself, has a decoder alone");
  CHECK(draft.vocab_size == model.vocab_size, ConfigError,
        "generate: the draft model's vocabulary has ", draft.vocab_size,
        " tokens, the model's has ", model.vocab_size, "; they must be the same");
  if (has_bounded_positions(draft)) room.tokens = std::min(room.tokens, draft.max_positions);
  return room;
}

}  // namespace

void guess_by_ngram(TokenIds& ids, const TokenIds& source, int64_t longest, int64_t count) {
  const auto length = static_cast<int64_t>(ids.size());
  for (int64_t n = std::min(longest, length); n > 0; --n)
    for (const TokenIds* text : {static_cast<const TokenIds*>(&ids), &source}) {
      int64_t next = end_of_last(*text, ids.data() + length - n, ids.data() + length);
      if (next == 0) continue;
      for (; count > 0 && next < static_cast<int64_t>(text->size()); --count)
        ids.push_back(int32_t{(*text)[next++]});
      return;
    }
}

DraftModel::DraftModel(Transformer& draft, const Transformer& model, const DecodeRoom& room)
    : draft_(draft),
      room_(room_of_draft(draft.config(), model.config(), room)),
      state_(draft, room_),
      seen_(room.sequences) {}

int64_t DraftModel::unseen(const DraftText& text) {
  TokenIds& seen = seen_[text.place];
  const auto first = text.ids->begin() + text.begin;
  const auto length = static_cast<int64_t>(text.ids->end() - first);
  const auto most = std::min(length - 1, static_cast<int64_t>(seen.size()));
  seen.resize(std::mismatch(seen.begin(), seen.begin() + most, first).first - seen.begin());
  state_.forget(text.place, static_cast<int64_t>(seen.size()));
  return length - static_cast<int64_t>(seen.size());
}

void DraftModel::guess(std::vector<DraftText>& texts, int64_t most) {
  most = std::min(most, kMostTokensInPass);
  std::vector<DraftText*> open;
  for (DraftText& text : texts) {
    const int64_t length = static_cast<int64_t>(text.ids->size()) - text.begin;
    text.count = std::min(text.count, room_.tokens - length + 1);
    if (text.count > 0) open.push_back(&text);
  }
  const Context context = draft_.context();
  KeepScope scope(*context.arena);
  const Tensor logits = context.arena->keep(DType::kFloat32, static_cast<int64_t>(open.size()),
                                            draft_.config().vocab_size);
  while (!open.empty()) {
    std::vector<DecodeRow> rows;
    std::vector<ChooseRow> choosing;
    std::vector<DraftText*> ready;
    for (DraftText* text : open) {
      const int64_t left = unseen(*text), count = std::min(left, std::max(most, kLeastShare));
      most -= count;
      TokenIds& seen = seen_[text->place];
      const int32_t* ids = text->ids->data() + text->begin + seen.size();
      const bool all = count == left;
      rows.push_back({.sequence = text->place, .ids = ids, .count = count, .wanted = all ? 1 : 0});
      seen.insert(seen.end(), ids, ids + count);
      if (!all) continue;
      ready.push_back(text);
      choosing.push_back({.options = text->options,
                          .history = {.ids = text->ids->data(),
                                      .length = static_cast<int64_t>(text->ids->size()),
                                      .prompt_length = text->prompt_length},
                          .sequence = text->twin});
    }
    const auto chosen = static_cast<int64_t>(ready.size());
    state_.advance(rows, row_slice(logits, 0, chosen));
    std::vector<Choice> choices(chosen);
    choose_tokens(context, row_slice(logits, 0, chosen), choosing.data(), choices.data());
    open.clear();
    for (int64_t i = 0; i < chosen; ++i) {
      if (choices[i].failure != ChoiceFailure::kNone) continue;
      ready[i]->ids->push_back(choices[i].id);
      if (--ready[i]->count > 0) open.push_back(ready[i]);
    }
  }
}

}  // namespace llmcore
