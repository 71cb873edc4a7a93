// Lays out the cache of all layers in one buffer.
#include "generate/kv_cache.h"

#include <cstring>

namespace llmcore {

KvCache::KvCache(const Config& config, int64_t batch, int64_t capacity)
    : layers_(config.num_decoder_layers),
      batch_(batch),
      capacity_(capacity),
      width_(config.num_kv_heads * config.head_dim),
      storage_(layers_ * 2 * batch * capacity * width_ * static_cast<int64_t>(sizeof(float))) {}

Tensor KvCache::layer(int64_t index, int which, int64_t batch) const {
  float* data = static_cast<float*>(storage_.data());
  return f32_view(data + (index * 2 + which) * batch_ * capacity_ * width_, batch, capacity_,
                  width_);
}

std::vector<LayerCache> KvCache::first(int64_t batch) const {
  std::vector<LayerCache> caches;
  for (int64_t index = 0; index < layers_; ++index)
    caches.push_back({layer(index, 0, batch), layer(index, 1, batch)});
  return caches;
}

void KvCache::copy_sequence(int64_t from, int64_t to, int64_t tokens) {
  const int64_t stride = capacity_ * width_;
  for (int64_t index = 0; index < layers_; ++index)
    for (int which = 0; which < 2; ++which) {
      float* data = layer(index, which, batch_).f32();
      std::memcpy(data + to * stride, data + from * stride, tokens * width_ * sizeof(float));
    }
}

}  // namespace llmcore
