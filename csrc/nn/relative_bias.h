// Relative position bias: a learned number for each head and bucket of distances, added to the
// scores of every layer of a stack (Raffel et al. 2020, section 2.1).
#pragma once

#include "nn/config.h"
#include "nn/params.h"
#include "nn/sequences.h"

namespace llmcore {

class RelativeBias {
 public:
  struct Saved {
    Tensor gradient;  // [H, W]
  };

  // `causal`: keys on the right are never seen, so that all buckets are for those on the left.
  RelativeBias(const ParamBuilder& builder, const Config& config, bool causal);

  // Writes sequences.buckets, inputs that the caller uploads.
  void prepare(const Context& context, Sequences& sequences) const;

  // Points sequences.bias at values for every query and key. They depend on the distance alone, of
  // which there are W = T + S - 1, so that nothing of size T x S is held.
  void forward(const Context& context, Sequences& sequences) const;

  // Between these two the layers add to the gradient, where sequences.dbias points.
  void begin_backward(const Context& context, Sequences& sequences, Saved& saved) const;
  void finish_backward(const Context& context, const Sequences& sequences,
                       const Saved& saved) const;

 private:
  // The bucket of a key `distance` places to the right of its query.
  int32_t bucket(int64_t distance) const;

  int64_t heads_, buckets_, max_distance_;
  bool causal_;
  Param table_;  // [buckets, H]
};

}  // namespace llmcore
