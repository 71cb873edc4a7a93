// Gathers the rows of a decoding pass, and moves sequences about.
#include "generate/decode_state.h"

#include <algorithm>

#include "core/error.h"
#include "nn/check_batch.h"

namespace llmcore {
namespace {

Tensor int32_view(std::vector<int32_t>& values) {
  return tensor_view(values.data(), DType::kInt32, static_cast<int64_t>(values.size()));
}

}  // namespace

DecodeState::DecodeState(Transformer& model, int64_t sequences, int64_t capacity,
                         const std::vector<TokenIds>& sources,
                         const std::vector<int32_t>& source_of)
    : model_(model),
      cache_(model.config(), sequences, capacity),
      places_(sequences * capacity, 0),
      seen_(sequences, 0),
      source_of_(source_of) {
  if (!sources.empty()) encode(sources);
}

void DecodeState::encode(const std::vector<TokenIds>& sources) {
  const Config& config = model_.config();
  int64_t longest = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    const int64_t length = static_cast<int64_t>(sources[i].size());
    CHECK(length > 0, ShapeError, "generate: sources[", i, "] has no tokens");
    CHECK(!has_bounded_positions(config) || length <= config.max_positions, ShapeError,
          "generate: sources[", i, "] has ", length, " tokens, the encoder has positions for ",
          config.max_positions, "; shorten it");
    longest = std::max(longest, length);
    source_lengths_.push_back(static_cast<int32_t>(length));
  }
  std::vector<int32_t> padded(sources.size() * longest, 0);
  for (size_t i = 0; i < sources.size(); ++i)
    std::copy(sources[i].begin(), sources[i].end(), padded.begin() + i * longest);
  memory_ = MemoryCache(config, static_cast<int64_t>(sources.size()), longest);
  const Tensor ids = reshaped(int32_view(padded), sources.size(), longest);
  model_.encode_memory(ids, int32_view(source_lengths_), memory_.layers());
}

void DecodeState::advance(const std::vector<DecodeRow>& rows, const Tensor& logits) {
  Arena& arena = model_.arena();
  KeepScope scope(arena);
  const int64_t batch = static_cast<int64_t>(rows.size()), capacity = cache_.capacity();
  int64_t queries = 0;
  for (const DecodeRow& row : rows) queries = std::max(queries, row.count);

  const Tensor ids = arena.keep(DType::kInt32, batch, queries);
  const Tensor lengths = arena.keep(DType::kInt32, batch);
  const Tensor past = arena.keep(DType::kInt32, batch);
  const Tensor source_rows = arena.keep(DType::kInt32, batch);
  const Tensor source_lengths = arena.keep(DType::kInt32, batch);
  Cache cache{.layers = cache_.layers(), .rows = arena.keep(DType::kInt32, batch, capacity)};
  std::fill_n(ids.as<int32_t>(), ids.numel(), 0);
  for (int64_t b = 0; b < batch; ++b) {
    const DecodeRow& row = rows[b];
    int64_t& seen = seen_[row.sequence];
    int32_t* places = &places_[row.sequence * capacity];
    std::fill_n(places + seen, row.count, static_cast<int32_t>(row.sequence));
    std::copy_n(places, capacity, cache.rows.as<int32_t>() + b * capacity);
    std::copy_n(row.ids, row.count, ids.as<int32_t>() + b * queries);
    lengths.as<int32_t>()[b] = static_cast<int32_t>(row.count);
    past.as<int32_t>()[b] = static_cast<int32_t>(seen);
    seen += row.count;
    if (source_of_.empty()) continue;
    source_rows.as<int32_t>()[b] = source_of_[row.sequence];
    source_lengths.as<int32_t>()[b] = source_lengths_[source_of_[row.sequence]];
  }
  const Memory memory{.keys = memory_.keys(),
                      .lengths = source_lengths.as<int32_t>(),
                      .keys_values = memory_.layers(),
                      .rows = source_rows.as<int32_t>()};
  model_.decode({.ids = ids,
                 .lengths = lengths,
                 .past = past,
                 .cache = &cache,
                 .memory = source_of_.empty() ? nullptr : &memory,
                 .logits = logits});
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
