// The decoding loop: what each step reads, where it stands, and whom it gives a token.
#include "generate/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

// A pass over prompts is no longer, so that its activations stay small.
constexpr int64_t kMostTokensInPass = 2048;
// Nor does a prompt get less of it than this.
constexpr int64_t kLeastShare = 32;
// Sources are encoded together up to so many tokens, padding included.
constexpr int64_t kMostSourceTokens = 8192;
// Prompts that begin with fewer common tokens than this are read apart.
constexpr int64_t kLeastShared = 16;

int64_t common_prefix(const TokenIds& a, const TokenIds& b) {
  const auto length = static_cast<int64_t>(std::min(a.size(), b.size()));
  return std::mismatch(a.begin(), a.begin() + length, b.begin()).first - a.begin();
}

}  // namespace

Engine::Engine(Transformer& model, Transformer* draft, const DecodeRoom& room,
               int64_t prompt_tokens)
    : model_(model),
      room_(room),
      prompt_tokens_(prompt_tokens),
      state_(model, room),
      places_(room.sequences) {
  if (draft != nullptr) draft_.emplace(*draft, model, room);
}

void Engine::check(const Request& request) const {
  const std::vector<TokenIds> sources(room_.sources > 0 ? 1 : 0, request.source);
  const DecodeRoom need = decode_room(model_.config(), {request.prompt}, sources, request.options);
  CHECK(request.options.num_beams == 1, ConfigError,
        "engine: beam search has no part in continuous batching; set num_beams to 1, or use "
        "model.generate");
  CHECK(request.options.speculate != Speculate::kDraft || draft_, ConfigError,
        "generate: speculate='draft' needs a draft_model");
  CHECK(need.tokens <= room_.tokens, ShapeError, "engine: the prompt's ", request.prompt.size(),
        " tokens and max_new_tokens = ", request.options.max_new_tokens, " need room for ",
        need.tokens, " tokens, a request has ", room_.tokens,
        "; shorten them, or make the engine with a larger capacity");
  CHECK(need.source_tokens <= room_.source_tokens, ShapeError, "engine: the prompt has ",
        need.source_tokens, " tokens, a request has room for ", room_.source_tokens,
        "; shorten it, or make the engine with a larger capacity");
}

int64_t Engine::join(Request request) {
  check(request);
  CHECK(has_room(), ShapeError, "engine: all ", places_.size(), " places are taken");
  size_t place = places_.size();
  for (size_t i = 0; i < places_.size(); ++i)
    if (!places_[i].taken &&
        (place == places_.size() || places_[i].last_used < places_[place].last_used))
      place = i;
  places_[place].taken = true;
  TokenIds ids = request.prompt;
  const int64_t most_guesses = request.options.num_draft_tokens;
  texts_.push_back({.number = joined_++,
                    .request = std::move(request),
                    .ids = std::move(ids),
                    .place = place,
                    .most_guesses = most_guesses});
  return texts_.back().number;
}

void Engine::leave(int64_t number) {
  for (Text& text : texts_)
    if (text.number == number) text.ended = true;
  drop_ended();
}

void Engine::drop_ended() {
  for (const Text& text : texts_) {
    if (!text.ended) continue;
    places_[text.place].taken = false;
    places_[text.place].last_used = ++clock_;
  }
  std::erase_if(texts_, [](const Text& text) { return text.ended; });
}

Engine::Text* Engine::find(int64_t number) {
  const auto found = std::ranges::lower_bound(texts_, number, {}, &Text::number);
  return found != texts_.end() && found->number == number ? &*found : nullptr;
}

int64_t Engine::unseen(const Text& text) const {
  const int64_t seen = text.started ? state_.seen(static_cast<int64_t>(text.place)) : 0;
  return static_cast<int64_t>(text.ids.size()) - text.begin - seen;
}

void Engine::forget(Text& text, int64_t count) {
  state_.forget(static_cast<int64_t>(text.place), count);
  places_[text.place].seen.resize(count);
}

void Engine::encode_sources() {
  std::vector<int32_t> sources;
  std::vector<const TokenIds*> ids;
  int64_t longest = 0;
  const auto encode = [&] {
    if (!sources.empty()) state_.encode(sources, ids);
    sources.clear();
    ids.clear();
    longest = 0;
  };
  for (Text& text : texts_) {
    if (text.encoded) continue;
    text.encoded = true;
    const TokenIds& source = text.request.source;
    longest = std::max(longest, static_cast<int64_t>(source.size()));
    if (longest * static_cast<int64_t>(sources.size() + 1) > kMostSourceTokens) encode();
    longest = std::max(longest, static_cast<int64_t>(source.size()));
    sources.push_back(static_cast<int32_t>(text.place));
    ids.push_back(&source);
  }
  encode();
}

bool Engine::start(Text& text, const std::vector<Text*>& earlier) {
  // The last token of a prompt is always read: its logits are wanted. What a decoder makes of a
  // token depends on the source, so that beside an encoder nothing is shared.
  const int64_t most = room_.sources > 0 ? 0 : static_cast<int64_t>(text.ids.size()) - 1;
  const auto shared_with = [&](const TokenIds& ids) {
    const int64_t shared = std::min(most, common_prefix(text.ids, ids));
    return shared < kLeastShared ? 0 : shared;
  };
  size_t donor = text.place;
  for (size_t i = 0; i < places_.size(); ++i)
    if (shared_with(places_[i].seen) > shared_with(places_[donor].seen)) donor = i;
  const int64_t shared = shared_with(places_[donor].seen);
  for (const Text* other : earlier)
    if (other->begin == 0 && shared_with(other->ids) > shared) return false;

  state_.begin_as(static_cast<int64_t>(text.place), static_cast<int64_t>(donor), shared);
  places_[donor].last_used = ++clock_;
  places_[text.place].seen.assign(text.ids.begin(), text.ids.begin() + shared);
  copied_tokens_ += shared;
  text.started = true;
  return true;
}

std::vector<Engine::Reading> Engine::next_readings(int64_t most) {
  std::vector<Text*> waiting;
  for (Text& text : texts_)
    if (unseen(text) > 0) waiting.push_back(&text);
  std::vector<Reading> readings;
  std::vector<Text*> earlier;
  for (size_t i = 0; i < waiting.size() && most > 0; ++i) {
    Text& text = *waiting[i];
    if (text.started || start(text, earlier)) {
      const int64_t share = most / static_cast<int64_t>(waiting.size() - i);
      readings.push_back({&text, std::min({unseen(text), most, std::max(share, kLeastShare)})});
      most -= readings.back().count;
      read_tokens_ += readings.back().count;
    }
    earlier.push_back(&text);
  }
  return readings;
}

void Engine::guess(const std::vector<Text*>& waiting) {
  std::vector<DraftText> drafts;
  std::vector<int64_t> lengths;
  for (Text* text : waiting) {
    const GenerationOptions& options = text->request.options;
    lengths.push_back(static_cast<int64_t>(text->ids.size()));
    // The model itself gives the last token that may come.
    const int64_t left = text->request.prompt.size() + options.max_new_tokens - text->ids.size();
    int64_t most = std::min(text->most_guesses, left - 1);
    if (has_bounded_positions(model_.config()))
      most = std::min(most, model_.config().max_positions - 1 - (lengths.back() - text->begin));
    if (most < 1) continue;
    if (options.speculate == Speculate::kNgram)
      guess_by_ngram(text->ids, text->request.source, options.draft_ngram, most);
    else if (options.speculate == Speculate::kDraft)
      drafts.push_back({.place = static_cast<int64_t>(text->place),
                        .ids = &text->ids,
                        .begin = text->begin,
                        .prompt_length = static_cast<int64_t>(text->request.prompt.size()),
                        .options = &options,
                        .twin = text->request.twin,
                        .count = most});
  }
  if (!drafts.empty()) draft_->guess(drafts, prompt_tokens_);
  for (size_t i = 0; i < waiting.size(); ++i) {
    waiting[i]->guessed = static_cast<int64_t>(waiting[i]->ids.size()) - lengths[i];
    guessed_tokens_ += waiting[i]->guessed;
  }
}

void Engine::read(const std::vector<Reading>& readings, Round& round) {
  const auto before = static_cast<int64_t>(round.rows.size());
  std::vector<DecodeRow> rows;
  for (const auto& [text, count] : readings) {
    const auto place = static_cast<int64_t>(text->place);
    const int32_t* ids = text->ids.data() + text->begin + state_.seen(place);
    const bool all = count == unseen(*text);
    rows.push_back(
        {.sequence = place, .ids = ids, .count = count, .wanted = all ? 1 + text->guessed : 0});
    places_[place].seen.insert(places_[place].seen.end(), ids, ids + count);
    if (!all) continue;
    round.texts.push_back(text);
    for (int64_t ahead = text->guessed; ahead >= 0; --ahead)
      round.rows.push_back(choosing(*text, static_cast<int64_t>(text->ids.size()) - ahead));
  }
  const int64_t wanted = static_cast<int64_t>(round.rows.size()) - before;
  state_.advance(rows, row_slice(round.logits, before, wanted));
}

ChooseRow Engine::choosing(const Text& text, int64_t length) const {
  return {.options = &text.request.options,
          .history = {.ids = text.ids.data(),
                      .length = length,
                      .prompt_length = static_cast<int64_t>(text.request.prompt.size())},
          .sequence = text.request.twin};
}

bool Engine::chosen_in_pass(const Text& text, int64_t length) const {
  return model_.device().type != DeviceType::kCpu &&
         text.request.options.speculate == Speculate::kNo &&
         leaves_logits(text.request.options, choosing(text, length).history);
}

void Engine::ask(const std::vector<Text*>& texts, const std::vector<DecodeRow>& rows) {
  std::vector<SampleSettings> settings;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto length = static_cast<int64_t>(texts[i]->ids.size()) + (rows[i].chosen >= 0);
    settings.push_back(settings_of(choosing(*texts[i], length), model_.config().vocab_size));
    asked_.push_back(texts[i]->number);
  }
  state_.ask(rows, std::move(settings));
}

void Engine::ask_ahead(const std::vector<int64_t>& asked) {
  std::vector<Text*> texts;
  std::vector<DecodeRow> rows;
  for (Text& text : texts_) {
    const auto row = std::ranges::lower_bound(asked, text.number);
    if (row == asked.end() || *row != text.number) return;  // it reads its prompt
    const auto length = static_cast<int64_t>(text.ids.size()) + 1;
    const GenerationOptions& options = text.request.options;
    if (length - static_cast<int64_t>(text.request.prompt.size()) >= options.max_new_tokens)
      continue;
    if (at_limit(text, length)) {
      if (text.request.slide) return;
      continue;
    }
    if (!chosen_in_pass(text, length)) return;
    texts.push_back(&text);
    rows.push_back(
        {.sequence = static_cast<int64_t>(text.place), .count = 1, .chosen = row - asked.begin()});
  }
  if (texts.empty()) return;
  ask(texts, rows);
  ++passes_ahead_;
}

bool Engine::at_limit(const Text& text, int64_t length) const {
  return has_bounded_positions(model_.config()) &&
         length - text.begin >= model_.config().max_positions;
}

bool Engine::make_room(Text& text) {
  if (!at_limit(text, static_cast<int64_t>(text.ids.size()))) return true;
  const int64_t limit = model_.config().max_positions;
  // Positions restart at zero, so what is kept has to be read again.
  if (!text.request.slide || limit < 2) return false;
  text.begin = static_cast<int64_t>(text.ids.size()) - limit / 2;
  forget(text, 0);
  return true;
}

GeneratedToken Engine::extend(Text& text, const Choice& choice, bool guessed) {
  if (choice.failure != ChoiceFailure::kNone) {
    text.ended = true;
    return {text.number,     choice.id, 0.0f,
            Finish::kFailed, false,     failure_message(choice.failure, text.number)};
  }
  text.ids.push_back(choice.id);
  const GenerationOptions& options = text.request.options;
  const bool stop = std::find(options.stop_ids.begin(), options.stop_ids.end(), choice.id) !=
                    options.stop_ids.end();
  const auto added = static_cast<int64_t>(text.ids.size() - text.request.prompt.size());
  Finish finish = Finish::kNo;
  if (stop)
    finish = Finish::kStop;
  else if (added >= options.max_new_tokens || !make_room(text))
    finish = Finish::kLength;
  text.ended = finish != Finish::kNo;
  return {text.number, choice.id, choice.log_probability, finish, guessed, ""};
}

void Engine::settle(Text& text, const Choice* choices, std::vector<GeneratedToken>& tokens) {
  const TokenIds guesses(text.ids.end() - text.guessed, text.ids.end());
  text.ids.resize(text.ids.size() - guesses.size());
  text.guessed = 0;
  size_t right = 0;
  for (bool guessed = true; guessed && !text.ended;) {
    guessed = right < guesses.size() && choices[right].id == guesses[right];
    tokens.push_back(extend(text, choices[right], guessed));
    right += guessed;
  }
  accepted_tokens_ += right;
  if (guesses.empty()) return;
  // Where guesses have been wrong fewer are made, where all were right more.
  const auto count = static_cast<int64_t>(right);
  text.most_guesses = right < guesses.size() ? count + 1
                                             : std::min(std::max(text.most_guesses, 2 * count),
                                                        text.request.options.num_draft_tokens);
  const int64_t known = static_cast<int64_t>(text.ids.size()) - text.begin - 1;
  forget(text, std::min(known, state_.seen(static_cast<int64_t>(text.place))));
}

std::vector<GeneratedToken> Engine::step() {
  if (done()) return {};
  const Context context = model_.context();
  KeepScope scope(*context.arena);
  if (room_.sources > 0) encode_sources();

  // Those that wait for a token have a pass of their own, without the padding of long rows. It may
  // have been asked for in the last step.
  std::vector<Text*> waiting;
  for (Text& text : texts_)
    if (text.started && unseen(text) == 1) waiting.push_back(&text);
  if (asked_.empty() && std::ranges::all_of(waiting, [&](const Text* text) {
        return chosen_in_pass(*text, static_cast<int64_t>(text->ids.size()));
      })) {
    std::vector<DecodeRow> rows;
    for (const Text* text : waiting)
      rows.push_back(
          {.sequence = static_cast<int64_t>(text->place), .ids = &text->ids.back(), .count = 1});
    if (!rows.empty()) ask(waiting, rows);
    waiting.clear();
  }
  const std::vector<int64_t> asked = std::exchange(asked_, {});
  if (!asked.empty()) ask_ahead(asked);

  guess(waiting);
  std::vector<Reading> readings;
  auto most_rows = static_cast<int64_t>(texts_.size());
  for (Text* text : waiting) {
    readings.push_back({text, 1 + text->guessed});
    most_rows += text->guessed;
  }
  Round round{.logits =
                  context.arena->keep(DType::kFloat32, most_rows, model_.config().vocab_size)};
  if (!readings.empty()) read(readings, round);
  for (int64_t left = prompt_tokens_; left > 0;) {
    readings = next_readings(std::min(left, kMostTokensInPass));
    if (readings.empty()) break;
    for (const Reading& reading : readings) left -= reading.count;
    read(readings, round);
  }

  const auto ready = static_cast<int64_t>(round.rows.size());
  std::vector<Choice> choices(ready);
  choose_tokens(context, row_slice(round.logits, 0, ready), round.rows.data(), choices.data());
  std::vector<GeneratedToken> tokens;
  if (!asked.empty()) {
    const std::vector<Choice> chosen = state_.collect();
    for (size_t i = 0; i < asked.size(); ++i)
      if (Text* text = find(asked[i])) {  // it has not left
        places_[text->place].seen.push_back(text->ids.back());
        settle(*text, &chosen[i], tokens);
      }
  }
  const Choice* next = choices.data();
  for (Text* text : round.texts) {
    const Choice* of_text = next;
    next += 1 + text->guessed;
    settle(*text, of_text, tokens);
  }
  std::stable_sort(
      tokens.begin(), tokens.end(),
      [](const GeneratedToken& a, const GeneratedToken& b) { return a.text < b.text; });
  drop_ended();
  return tokens;
}

Engine engine_for(Transformer& model, Transformer* draft, const std::vector<TokenIds>& prompts,
                  const std::vector<TokenIds>& sources, const GenerationOptions& options,
                  bool slide) {
  const DecodeRoom room = decode_room(model.config(), prompts, sources, options);
  Engine engine(model, draft, room, std::numeric_limits<int64_t>::max());
  for (size_t i = 0; i < prompts.size(); ++i) {
    uint64_t twins = 0;
    for (size_t j = 0; j < i; ++j)
      twins += prompts[j] == prompts[i] && (sources.empty() || sources[j] == sources[i]);
    engine.join({.prompt = prompts[i],
                 .source = sources.empty() ? TokenIds{} : sources[i],
                 .options = options,
                 .slide = slide,
                 .twin = twins});
  }
  return engine;
}

}  // namespace llmcore
