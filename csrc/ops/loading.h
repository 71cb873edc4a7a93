// What opening a checkpoint computes: checksums, and stored matrices made float32.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"

namespace llmcore {

// Element (r, c) lies at x + r * row_stride + c * col_stride, strides in bytes. Elements of a row
// or of a column are adjacent; nothing need be aligned.
struct StoredMatrix {
  DType dtype = DType::kFloat32;  // float32, bfloat16 or float16
  const char* x = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 0;
  float* y = nullptr;  // [rows, cols], dense; does not overlap x

  LLMCORE_INLINE bool rows_adjacent() const { return cols == 1 || col_stride == dtype_size(dtype); }
  // From one line, a row or a column that lies in one piece, to the next.
  LLMCORE_INLINE int64_t line_stride() const { return rows_adjacent() ? row_stride : col_stride; }
};

struct LoadingKernels {
  // On the calling thread: the lines that begin in [begin, end) of memory, and of columns, whose
  // vectors go together, those whose vector's first begins there.
  void (*widen)(const StoredMatrix& matrix, const char* begin, const char* end);
  // The CRC-32 of zlib, on the calling thread.
  uint32_t (*crc32)(const char* data, int64_t bytes);
};

// Writes each matrix, exactly, to its y; all threads share the work on all of them.
void widen(const Context& context, const std::vector<StoredMatrix>& matrices);

// The CRC-32 of zlib, gone on with from `start`, the CRC-32 of what came before. Widens `matrices`
// too, each part of `data` while it is in the cache; those elsewhere than in `data` after it.
uint32_t crc32(const Context& context, const char* data, int64_t bytes, uint32_t start,
               const std::vector<StoredMatrix>& matrices = {});

}  // namespace llmcore
