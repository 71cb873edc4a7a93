// Looks rows up in tables and adds them: tokens, positions, segment types.
//
//   out[n] = dropout(scale * table[ids[n]] + positions[position_ids[n]] + types[type_ids[n]])
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

// Ids may have any shape of N elements: an error then names the place in that shape.
struct EmbeddingArgs {
  Tensor ids;                  // [N] int32, each in [0, V); kernels take none for n itself
  Tensor table;                // [V, C], float32 or packed
  float scale = 1.0f;          // of the token row alone
  Tensor positions;            // [P, C], or empty
  Tensor position_ids;         // [N] int32; with positions
  int64_t first_position = 0;  // row position_ids[n] + first_position of positions, in [0, P)
  Tensor types;                // [S, C], or empty
  Tensor type_ids;             // [N] int32, each in [0, S); empty: all 0
  Dropout dropout;             // of the sum, element n * C + c
  Tensor out;                  // [N, C]
};

struct EmbeddingBackwardArgs {
  Tensor ids;  // [N] int32; with dtable
  float scale = 1.0f;
  Tensor position_ids;  // [N] int32; with dpositions
  int64_t first_position = 0;
  Tensor type_ids;  // [N] int32; empty: all 0
  Dropout dropout;
  Tensor dout;        // [N, C]
  Tensor dtable;      // [V, C] accumulates, rows in ascending n; or empty
  Tensor dpositions;  // [P, C] accumulates, or empty
  Tensor dtypes;      // [S, C] accumulates, or empty
  Tensor scratch;     // provided by the checking layer
};

struct EmbeddingKernels {
  int64_t (*backward_scratch)(const EmbeddingBackwardArgs&);  // bytes
  void (*forward)(const Context&, const EmbeddingArgs&);
  void (*backward)(const Context&, const EmbeddingBackwardArgs&);
};

// Throws IndexError for an id outside its table, naming the id, its place and the table's size.
void embedding_forward(const Context& context, const EmbeddingArgs& args);
void embedding_backward(const Context& context, const EmbeddingBackwardArgs& args);

// Throws IndexError unless every one of `ids` (int32, any shape) plus first_row is in [0, rows):
//   embedding: ids[2, 5] = 70 is outside the table of 65 rows
void check_ids(const Context& context, const char* op, const char* name, const Tensor& ids,
               int64_t rows, int64_t first_row = 0);

}  // namespace llmcore
