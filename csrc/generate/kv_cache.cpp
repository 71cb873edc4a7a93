// Lays out the caches of all layers, each in one buffer.
#include "generate/kv_cache.h"

namespace llmcore {
namespace {

int64_t key_width(const Config& config) {
  return config.num_kv_heads * config.head_dim;
}

Buffer float_buffer(int64_t count) {
  return Buffer(count * static_cast<int64_t>(sizeof(float)));
}

}  // namespace

KvCache::KvCache(const Config& config, int64_t rows, int64_t capacity)
    : capacity_(capacity),
      storage_(float_buffer(config.num_decoder_layers * 2 * rows * capacity * key_width(config))) {
  const int64_t width = key_width(config), size = rows * capacity * width;
  float* data = static_cast<float*>(storage_.data());
  for (int64_t layer = 0; layer < config.num_decoder_layers; ++layer, data += 2 * size)
    layers_.push_back(
        {f32_view(data, rows, capacity, width), f32_view(data + size, rows, capacity, width)});
}

MemoryCache::MemoryCache(const Config& config, int64_t sources, int64_t keys)
    : keys_(keys),
      storage_(float_buffer(config.num_decoder_layers * sources * keys * 2 * key_width(config))) {
  const int64_t width = 2 * key_width(config), size = sources * keys * width;
  float* data = static_cast<float*>(storage_.data());
  for (int64_t layer = 0; layer < config.num_decoder_layers; ++layer, data += size)
    layers_.push_back(f32_view(data, sources, keys, width));
}

}  // namespace llmcore
