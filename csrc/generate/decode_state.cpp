// Gathers the rows of a decoding pass, and moves sequences about.
#include "generate/decode_state.h"

#include <algorithm>

#include "core/error.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

// Up to kMostQueries tokens of a sequence are a row of a pass. Padding costs what tokens cost; many
// rows of one sequence cost, as each reads all the keys, about what kRowCost tokens do.
constexpr int64_t kMostQueries = 32, kRowCost = 4;

int64_t blocks_of(const DecodeRow& row, int64_t queries) {
  return (row.count + queries - 1) / queries;
}

// The T that makes a pass over all rows cheapest.
int64_t best_queries(const std::vector<DecodeRow>& rows) {
  int64_t best = 1, least = -1;
  for (int64_t queries = 1; queries <= kMostQueries; queries *= 2) {
    int64_t blocks = 0;
    for (const DecodeRow& row : rows) blocks += blocks_of(row, queries);
    const int64_t cost = blocks * (queries + kRowCost);
    if (least >= 0 && cost >= least) continue;
    best = queries;
    least = cost;
  }
  return best;
}

int64_t longest(const Config& config, const std::vector<TokenIds>& texts, const char* name,
                const char* advice) {
  int64_t most = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const int64_t length = static_cast<int64_t>(texts[i].size());
    CHECK(length > 0, ShapeError, "generate: ", name, "[", i, "] has no tokens");
    CHECK(!has_bounded_positions(config) || length <= config.max_positions, ShapeError,
          "generate: ", name, "[", i, "] has ", length, " tokens, the model has positions for ",
          config.max_positions, "; ", advice);
    most = std::max(most, length);
  }
  return most;
}

}  // namespace

DecodeRoom decode_room(const Config& config, const std::vector<TokenIds>& prompts,
                       const std::vector<TokenIds>& sources, const GenerationOptions& options) {
  check_options(options, config.vocab_size);
  DecodeRoom room{.sequences = static_cast<int64_t>(prompts.size()),
                  .tokens = longest(config, prompts, "prompts",
                                    "shorten it, or let the context slide (overflow='slide')") +
                            options.max_new_tokens,
                  .sources = static_cast<int64_t>(sources.size()),
                  .source_tokens = longest(config, sources, "sources", "shorten it"),
                  .cache_dtype = options.cache_dtype};
  if (has_bounded_positions(config)) room.tokens = std::min(room.tokens, config.max_positions);
  return room;
}

DecodeState::DecodeState(Transformer& model, const DecodeRoom& room)
    : model_(model),
      cache_(model, room.cache_dtype, room.sequences, room.tokens),
      places_(room.sequences * room.tokens, 0),
      seen_(room.sequences, 0),
      memory_(model, room.cache_dtype, room.sources, room.source_tokens),
      sequences_per_source_(room.sources == 0 ? 0 : room.sequences / room.sources),
      source_lengths_(room.sources, 0) {}

void DecodeState::encode(const std::vector<int32_t>& sources,
                         const std::vector<const TokenIds*>& ids) {
  const int64_t batch = static_cast<int64_t>(sources.size());
  int64_t longest = 0;
  for (const TokenIds* source : ids)
    longest = std::max(longest, static_cast<int64_t>(source->size()));
  Arena& arena = model_.arena();
  KeepScope scope(arena);
  const Tensor padded = arena.input(DType::kInt32, batch, longest);
  const Tensor lengths = arena.input(DType::kInt32, batch);
  const Tensor rows = arena.input(DType::kInt32, batch);
  std::fill_n(padded.host<int32_t>(), padded.numel(), 0);
  for (int64_t i = 0; i < batch; ++i) {
    std::copy(ids[i]->begin(), ids[i]->end(), padded.host<int32_t>() + i * longest);
    lengths.host<int32_t>()[i] = static_cast<int32_t>(ids[i]->size());
    source_lengths_[sources[i]] = lengths.host<int32_t>()[i];
    rows.host<int32_t>()[i] = sources[i];
  }
  model_.encode_memory(padded, lengths, rows, memory_.layers());
}

void DecodeState::advance(const std::vector<DecodeRow>& rows, const Tensor& logits) {
  run(rows, {.logits = logits});
}

void DecodeState::ask(const std::vector<DecodeRow>& rows, std::vector<SampleSettings> settings) {
  if (!chosen_) chosen_ = std::make_unique<Chosen>(model_.device(), cache_.rows());
  Arena& arena = model_.arena();
  KeepScope scope(arena);
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor told = arena.input(DType::kInt8, count, sizeof(SampleSettings));
  const Tensor from = arena.input(DType::kInt32, count, 1);
  for (int64_t i = 0; i < count; ++i) {
    settings[i].row = static_cast<int32_t>(i);
    settings[i].place = static_cast<int32_t>(chosen_->place(i));
    told.host<SampleSettings>()[i] = settings[i];
    from.host<int32_t>()[i] =
        rows[i].chosen < 0 ? -1 : static_cast<int32_t>(chosen_->place_before(rows[i].chosen));
  }
  run(rows, {.logits = arena.keep(DType::kFloat32, count, model_.config().vocab_size),
             .settings = told,
             .choices = chosen_->choices(),
             .chosen_ids = chosen_->ids(),
             .from = from});
  chosen_->asked(model_.context().queue, count);
}

void DecodeState::run(const std::vector<DecodeRow>& rows, DecodeArgs args) {
  Arena& arena = model_.arena();
  KeepScope scope(arena);
  const int64_t capacity = cache_.capacity(), queries = best_queries(rows);
  int64_t batch = 0;
  for (const DecodeRow& row : rows) batch += blocks_of(row, queries);

  const auto ints = [&](auto... sizes) { return arena.input(DType::kInt32, sizes...); };
  const Tensor ids = ints(batch, queries), lengths = ints(batch), past = ints(batch);
  const Tensor source_rows = ints(batch), source_lengths = ints(batch);
  const Tensor wanted = ints(args.logits.rows());
  Cache cache{.layers = cache_.layers(),
              .rows = ints(batch, capacity),
              .apart = batch == static_cast<int64_t>(rows.size())};
  std::fill_n(ids.host<int32_t>(), ids.numel(), 0);
  int64_t b = 0, asked = 0;
  for (const DecodeRow& row : rows) {
    int64_t& seen = seen_[row.sequence];
    int32_t* places = &places_[row.sequence * capacity];
    std::fill_n(places + seen, row.count, static_cast<int32_t>(row.sequence));
    for (int64_t i = row.count - row.wanted; i < row.count; ++i)
      wanted.host<int32_t>()[asked++] =
          static_cast<int32_t>((b + i / queries) * queries + i % queries);
    for (int64_t first = 0; first < row.count; first += queries, ++b) {
      const int64_t count = std::min(queries, row.count - first);
      if (row.chosen < 0) std::copy_n(row.ids + first, count, ids.host<int32_t>() + b * queries);
      lengths.host<int32_t>()[b] = static_cast<int32_t>(count);
      past.host<int32_t>()[b] = static_cast<int32_t>(seen + first);
      std::copy_n(places, seen + row.count, cache.rows.host<int32_t>() + b * capacity);
      if (sequences_per_source_ == 0) continue;
      const int64_t source = row.sequence / sequences_per_source_;
      source_rows.host<int32_t>()[b] = static_cast<int32_t>(source);
      source_lengths.host<int32_t>()[b] = source_lengths_[source];
    }
    seen += row.count;
  }
  const Memory memory{.keys = memory_.capacity(),
                      .lengths = source_lengths,
                      .layers = memory_.layers(),
                      .rows = source_rows};
  args.ids = ids;
  args.lengths = lengths;
  args.past = past;
  args.cache = &cache;
  args.memory = sequences_per_source_ == 0 ? nullptr : &memory;
  args.rows = wanted;
  model_.decode(args);
}

void DecodeState::begin_as(int64_t sequence, int64_t other, int64_t count) {
  seen_[sequence] = count;
  if (sequence == other) return;
  cache_.copy(model_.context().queue, other, sequence, count);
  std::fill_n(&places_[sequence * cache_.capacity()], count, static_cast<int32_t>(sequence));
}

void DecodeState::reorder(int64_t first, const std::vector<int32_t>& parents) {
  const int64_t capacity = cache_.capacity(), count = static_cast<int64_t>(parents.size());
  const std::vector<int32_t> places(places_.begin() + first * capacity,
                                    places_.begin() + (first + count) * capacity);
  const std::vector<int64_t> seen(seen_.begin() + first, seen_.begin() + first + count);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(places.begin() + parents[i] * capacity, capacity,
                places_.begin() + (first + i) * capacity);
    seen_[first + i] = seen[parents[i]];
  }
}

}  // namespace llmcore
