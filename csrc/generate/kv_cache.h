// KvCache: room for keys and values of every decoder layer: of the tokens that sequences have seen,
// or of what cross-attention reads of encoded sources.
#pragma once

#include "core/buffer.h"
#include "nn/sequences.h"
#include "nn/transformer.h"

namespace llmcore {

class KvCache {
 public:
  // Room for `capacity` tokens in each of `rows` places, kept as `dtype` (ops/kv_tiles.h).
  KvCache(Transformer& model, DType dtype, int64_t rows, int64_t capacity);

  const std::vector<LayerCache>& layers() const { return layers_; }
  int64_t rows() const { return rows_; }
  int64_t capacity() const { return capacity_; }

  // The first `count` tokens of place `from` come to stand in place `to` as well.
  void copy(Queue* queue, int64_t from, int64_t to, int64_t count) const;

 private:
  int64_t rows_, capacity_;
  Buffer storage_;                  // [L, 2] of [R, row_words()]
  std::vector<LayerCache> layers_;  // views of it
};

}  // namespace llmcore
