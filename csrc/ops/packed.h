// Weights packed for inference, in bfloat16, int8 or int4: their formats, how matrices come into
// and out of them, and the product y = x W^T.
//
// Such a matrix is a Tensor [N, K] of a packed dtype. It lies in panels of kPanelOutputs outputs,
// each read from its first byte to its last: 32-bit words, the words of all outputs for the same k
// side by side.
//
//   bfloat16  a word is two weights; x is rounded to bfloat16 too
//   int8      a word is four weights q + 128, with a float scale an output at the panel's end:
//             w = scale q, -127 <= q <= 127. x is rounded to int8 with a scale a row
//   int4      in groups of 32 along K: w = scale q, -8 <= q <= 7, scales bfloat16. Bytes hold
//             q + 8 of two words, the later one in the upper half. Two groups are 8 lines of bytes
//             and a line of scales, the first group's in the lower halves. x as with int8
//
// Integer sums are exact; a row's result depends neither on its batch nor on threads. K is padded
// with weights of zero, N with outputs that are computed and dropped.
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "ops/matmul.h"

namespace llmcore {

inline constexpr int64_t kPanelOutputs = 16;
inline constexpr int64_t kInt4Group = 32;
// Sums of K products of bytes fit 32 bits.
inline constexpr int64_t kMaxPackedDepth = 1 << 16;

LLMCORE_INLINE bool is_packed(DType dtype) {
  return dtype == DType::kPackedBFloat16 || dtype == DType::kPackedInt8 ||
         dtype == DType::kPackedInt4;
}

LLMCORE_INLINE int64_t packed_panels(int64_t outputs) {
  return (outputs + kPanelOutputs - 1) / kPanelOutputs;
}

// Bytes of a panel of matrices [N, depth].
LLMCORE_INLINE int64_t panel_bytes(DType format, int64_t depth) {
  constexpr int64_t kLine = kPanelOutputs * 4;
  if (format == DType::kPackedBFloat16) return (depth + 1) / 2 * kLine;
  if (format == DType::kPackedInt8) return (depth + 3) / 4 * kLine + kLine;
  return (depth + 2 * kInt4Group - 1) / (2 * kInt4Group) * 9 * kLine;
}

LLMCORE_INLINE int64_t packed_bytes(DType format, int64_t outputs, int64_t depth) {
  return packed_panels(outputs) * panel_bytes(format, depth);
}

// Outputs [first, first + R) of a packed matrix [N, K].
struct PackedRows {
  Tensor packed;
  int64_t first = 0;
};

struct PackArgs {
  Tensor weight;  // [R, K] float32
  PackedRows to;
};

// Some outputs as files keep them, R of them; nothing need be aligned.
//
//   bfloat16  codes [R, K] are the weights; no scales
//   int8      codes [R, K], from -127 to 127; scales [R] float
//   int4      codes [R, ceil(K / 2)], a byte is two q + 8, the later one in the upper half; scales
//             [R, ceil(K / 32)] bfloat16
struct StoredRowsArgs {
  PackedRows of;
  int64_t rows = 0;
  char* codes = nullptr;
  // From one output's codes to the next. Zero: they are bfloat16 [K, R], `col_stride` from one k to
  // the next; else each output's lie in one piece. In bytes.
  int64_t row_stride = 0, col_stride = 0;
  char* scales = nullptr;  // dense
};

// Bytes of one output's codes and scales in files.
LLMCORE_INLINE int64_t stored_code_bytes(DType format, int64_t depth) {
  if (format == DType::kPackedBFloat16) return 2 * depth;
  return format == DType::kPackedInt8 ? depth : (depth + 1) / 2;
}
LLMCORE_INLINE int64_t stored_scale_bytes(DType format, int64_t depth) {
  if (format == DType::kPackedBFloat16) return 0;
  return format == DType::kPackedInt8 ? 4 : (depth + kInt4Group - 1) / kInt4Group * 2;
}

struct UnpackRowsArgs {
  Tensor packed;  // [N, K]
  Tensor rows;    // [R] int32, each in [0, N)
  Tensor out;     // [R, K] float32
};

struct PackedKernels {
  // These on the CPU alone.
  void (*pack)(const PackArgs&);
  void (*get_stored)(const StoredRowsArgs&);
  bool (*set_stored)(const StoredRowsArgs&);  // false where a code is out of range

  void (*unpack_rows)(const Context&, const UnpackRowsArgs&);
  int64_t (*scratch_bytes)(const MatmulArgs&);
  void (*matmul)(const Context&, const MatmulArgs&);
  bool normalises;  // rows of a, in any product
};

// Rounds to the nearest weight of the format; int4 takes, for each group, the scale of the smallest
// squared error among some.
void pack_weight(const Context& context, const PackArgs& args);
// Writes what files hold; of bfloat16 the rows.
void get_stored(const Context& context, const StoredRowsArgs& args);
// Throws ConfigError, after it has set all, where a code is out of range.
void set_stored(const Context& context, const StoredRowsArgs& args);
void unpack_rows(const Context& context, const UnpackRowsArgs& args);

// matmul() comes here when b is packed; it must be [N, K], transpose_b. No other form exists.
void packed_matmul(const Context& context, const MatmulArgs& args);

}  // namespace llmcore
