// Checks of what is loaded, and a checksum put together from those of its parts.
#include "ops/loading.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

// Polynomials over two elements modulo that of CRC-32: the highest bit is the coefficient of 1.
constexpr uint32_t kOne = 1u << 31, kModulus = 0xedb88320u;

uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (uint32_t term = kOne; term != 0; term >>= 1) {
    if (a & term) sum ^= b;
    b = b & 1 ? (b >> 1) ^ kModulus : b >> 1;
  }
  return sum;
}

// What a checksum is multiplied by when `bytes` more follow: x to the power of their bits.
uint32_t shift_by(int64_t bytes) {
  uint32_t result = kOne;
  for (uint32_t square = kOne >> 8; bytes > 0; bytes >>= 1, square = product(square, square))
    if (bytes & 1) result = product(result, square);
  return result;
}

// Bytes of a task: they stay in the second cache from the checksum to the copy, and take longer
// than a loop of arithmetic should, since pages are touched first here.
constexpr int64_t kPart = int64_t{1} << 20;

void check(const StoredMatrix& m) {
  const bool known =
      m.dtype == DType::kFloat32 || m.dtype == DType::kBFloat16 || m.dtype == DType::kFloat16;
  CHECK(known, DTypeError, "widen: x must be float32, bfloat16 or float16, got ",
        dtype_name(m.dtype));
  CHECK(m.rows * m.cols == 0 || m.rows_adjacent() || m.rows == 1 ||
            m.row_stride == dtype_size(m.dtype),
        ShapeError,
        "widen: elements of a row or of a column of x must be adjacent, its strides are ",
        m.row_stride, " and ", m.col_stride, " bytes");
}

}  // namespace

void widen(const Context& context, const std::vector<StoredMatrix>& matrices) {
  struct Part {
    const StoredMatrix* matrix;
    const char* begin;
  };
  std::vector<Part> parts;
  for (const StoredMatrix& m : matrices) {
    check(m);
    if (m.rows * m.cols == 0) continue;
    const int64_t lines = m.rows_adjacent() ? m.rows : m.cols;
    const char* last = m.x + std::max<int64_t>(m.line_stride(), 0) * (lines - 1);
    for (const char* begin = m.x; begin <= last; begin += kPart) parts.push_back({&m, begin});
  }
  parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t i, int) {
    const auto [matrix, begin] = parts[i];
    context.kernels->loading->widen(*matrix, begin, begin + kPart);
  });
}

uint32_t crc32(const Context& context, const char* data, int64_t bytes, uint32_t start,
               const std::vector<StoredMatrix>& matrices) {
  std::vector<StoredMatrix> here, elsewhere;
  for (const StoredMatrix& m : matrices) {
    check(m);
    (data <= m.x && m.x < data + bytes ? here : elsewhere).push_back(m);
  }
  std::vector<uint32_t> parts((bytes + kPart - 1) / kPart);
  parallel_chunks(bytes, kPart, [&](int64_t begin, int64_t end, int) {
    parts[begin / kPart] = context.kernels->loading->crc32(data + begin, end - begin);
    for (const StoredMatrix& m : here) context.kernels->loading->widen(m, data + begin, data + end);
  });
  widen(context, elsewhere);
  const uint32_t whole_part = shift_by(kPart);
  for (int64_t i = 0; i < static_cast<int64_t>(parts.size()); ++i) {
    const int64_t size = std::min(kPart, bytes - i * kPart);
    start = product(size == kPart ? whole_part : shift_by(size), start) ^ parts[i];
  }
  return start;
}

}  // namespace llmcore
