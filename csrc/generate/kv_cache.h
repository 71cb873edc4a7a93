// KvCache: room for keys and values of every layer, for the tokens that sequences have seen.
#pragma once

#include "core/buffer.h"
#include "nn/config.h"
#include "nn/sequences.h"

namespace llmcore {

class KvCache {
 public:
  // Room for `capacity` tokens in each of `rows` places.
  KvCache(const Config& config, int64_t rows, int64_t capacity);

  const std::vector<LayerCache>& layers() const { return layers_; }
  int64_t capacity() const { return capacity_; }

 private:
  int64_t capacity_;
  Buffer storage_;                  // [L, 2, R, S, Hkv * D]
  std::vector<LayerCache> layers_;  // views of it
};

// The same for what cross-attention reads of encoded sources.
class MemoryCache {
 public:
  MemoryCache() = default;
  MemoryCache(const Config& config, int64_t sources, int64_t keys);

  const std::vector<Tensor>& layers() const { return layers_; }  // [L] of [R, S, 2 Hkv D]
  int64_t keys() const { return keys_; }

 private:
  int64_t keys_ = 0;
  Buffer storage_;
  std::vector<Tensor> layers_;
};

}  // namespace llmcore
