// Lays out the caches of all layers in one buffer.
#include "generate/kv_cache.h"

#include "core/queue.h"

namespace llmcore {
namespace {

int64_t tiles_for(int64_t tokens) {
  return (tokens + kTileTokens - 1) / kTileTokens;
}

}  // namespace

KvCache::KvCache(Transformer& model, DType dtype, int64_t rows, int64_t capacity)
    : rows_(rows), capacity_(capacity) {
  const Config& config = model.config();
  KvTiles tiles{.dtype = dtype,
                .tokens = tiles_for(capacity) * kTileTokens,
                .heads = config.num_kv_heads,
                .width = config.head_dim};
  const int64_t words = rows * tiles.row_words();
  storage_ = Buffer(config.num_decoder_layers * 2 * words * static_cast<int64_t>(sizeof(float)),
                    Backing::kMemory, model.device());
  tiles.data = static_cast<float*>(storage_.data());
  const auto next = [&](bool transposed) {
    KvTiles side = tiles;
    side.transposed = transposed;
    tiles.data += words;
    return side;
  };
  for (int64_t layer = 0; layer < config.num_decoder_layers; ++layer)
    layers_.push_back({.k = next(true), .v = next(false)});
}

void KvCache::copy(Queue* queue, int64_t from, int64_t to, int64_t count) const {
  for (const LayerCache& layer : layers_)
    for (const KvTiles& tiles : {layer.k, layer.v})
      for (int64_t head = 0; head < tiles.heads; ++head)
        copy_bytes(queue, tiles.tile(to, head, 0), tiles.tile(from, head, 0),
                   tiles_for(count) * tiles.tile_words() * static_cast<int64_t>(sizeof(float)));
}

}  // namespace llmcore
