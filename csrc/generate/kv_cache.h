// KvCache: keys and values of every layer for the tokens each sequence has seen.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "nn/config.h"
#include "nn/sequences.h"

namespace llmcore {

class KvCache {
 public:
  // Room for `capacity` tokens of each of `batch` sequences.
  KvCache(const Config& config, int64_t batch, int64_t capacity);

  // The first `batch` sequences, one entry a layer.
  std::vector<LayerCache> first(int64_t batch) const;

  // Sequence `to` becomes a copy of the first `tokens` tokens of sequence `from`.
  void copy_sequence(int64_t from, int64_t to, int64_t tokens);

  int64_t capacity() const { return capacity_; }

 private:
  Tensor layer(int64_t index, int which, int64_t batch) const;

  int64_t layers_, batch_, capacity_, width_;
  Buffer storage_;  // [L, 2, B, S, Hkv * D]
};

}  // namespace llmcore
