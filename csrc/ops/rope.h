// Rotary position embedding (Su et al. 2021).
//
// Of each head's D values the first R are rotated in pairs: value i with i + R/2, or with
// interleaved, 2i with 2i + 1. Backward is the rotation by the opposite angle.
//   (a, b) -> (a cos - b sin, b cos + a sin)
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "ops/attention.h"

namespace llmcore {

struct RopeArgs {
  int64_t batch = 0, rows = 0, heads = 0, head_dim = 0;  // B, T, H, D
  DType dtype = DType::kFloat32;                         // of x and y
  HeadView x;                                            // [B, T, H, D]
  HeadView y;                                            // where the result goes; may be x
  int64_t rotary_dim = 0;                                // R, even, at most D; the rest is copied
  bool interleaved = false;
  bool inverse = false;  // rotate back: the gradient of the rotation
  Tensor cos, sin;       // [P, R/2]
  Tensor positions;      // [B, T] int32 rows of cos and sin, each in [0, P)
};

struct RopeKernels {
  void (*rotate)(const Context&, const RopeArgs&);
};

// Throws IndexError for a position outside the tables.
void rope(const Context& context, const RopeArgs& args);

}  // namespace llmcore
