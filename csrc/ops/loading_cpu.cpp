// Loading on the CPU: stored matrices widened, transposed in registers; CRC-32 by carry-less
// products.
#include "ops/loading.h"

#include "simd/half.h"
#include "simd/loop.h"
#include "simd/transpose.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// min(count, kLanes) stored elements; the other lanes are zero.
template <DType kType>
LLMCORE_INLINE Vec load_stored(const char* p, int64_t count) {
  const int64_t size = kType == DType::kFloat32 ? 4 : 2;
  alignas(kVecBytes) char bytes[kVecBytes] = {};
  if (count >= kLanes)
    __builtin_memcpy(bytes, p, kLanes * size);
  else
    __builtin_memcpy(bytes, p, count * size);
  if constexpr (kType == DType::kFloat32) return load(reinterpret_cast<const float*>(bytes));
  const VecU bits = load_half(reinterpret_cast<const uint16_t*>(bytes));
  return kType == DType::kBFloat16 ? widen_bfloat16(bits) : widen_float16(bits);
}

// Whether whole vectors of y, from multiples of a vector on, are aligned.
LLMCORE_INLINE bool is_aligned(const StoredMatrix& m) {
  return reinterpret_cast<uintptr_t>(m.y) % kVecBytes == 0 && m.cols % kLanes == 0;
}

LLMCORE_INLINE void put(float* y, Vec v, int64_t count, bool aligned) {
  if (aligned)
    stream(y, v);
  else
    store_up_to(y, v, count);
}

template <DType kType>
void widen_rows(const StoredMatrix& m, int64_t begin, int64_t end) {
  const bool aligned = is_aligned(m);
  for (int64_t r = begin; r < end; ++r)
    for_each_vector(0, m.cols, [&](int64_t c, int64_t n) {
      const char* x = m.x + r * m.row_stride + c * dtype_size(kType);
      put(m.y + r * m.cols + c, load_stored<kType>(x, n), n, aligned);
    });
}

// Columns [begin, end), each of which lies in one piece. They are read in order first: a cache line
// of each after the other would be slow to come from memory, and of one after the other in x, lines
// side by side in y are written one after the other.
template <DType kType>
void widen_columns(const StoredMatrix& m, int64_t begin, int64_t end) {
  const bool aligned = is_aligned(m);
  constexpr int64_t kCacheLine = 64;
  for (int64_t c = begin; c < end; ++c)
    for (int64_t byte = 0; byte < m.rows * dtype_size(kType); byte += kCacheLine)
      static_cast<void>(*static_cast<const volatile char*>(m.x + c * m.col_stride + byte));
  for_each_vector(0, m.rows, [&](int64_t r, int64_t rows) {
    for_each_vector(begin, end, [&](int64_t c, int64_t cols) {
      Vec tile[kLanes] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (i < cols)
          tile[i] = load_stored<kType>(m.x + (c + i) * m.col_stride + r * dtype_size(kType), rows);
      transpose(tile);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        if (j < rows) put(m.y + (r + j) * m.cols + c, tile[j], cols, aligned);
    });
  });
}

template <DType kType>
void widen_lines(const StoredMatrix& m, int64_t begin, int64_t end) {
  if (m.rows_adjacent())
    widen_rows<kType>(m, begin, end);
  else
    widen_columns<kType>(m, begin, end);
  end_streaming();
}

void widen(const StoredMatrix& m, const char* begin, const char* end) {
  const bool rows = m.rows_adjacent();
  const int64_t lines = rows ? m.rows : m.cols, together = rows ? 1 : int64_t{kLanes};
  const int64_t step = m.line_stride() * together;
  const auto first_from = [&](const char* p) {
    if (p <= m.x) return int64_t{0};
    return step > 0 ? min(lines, ceil_div(p - m.x, step) * together) : lines;
  };
  const int64_t first = first_from(begin), last = first_from(end);
  if (first >= last) return;
  if (m.dtype == DType::kFloat32)
    widen_lines<DType::kFloat32>(m, first, last);
  else if (m.dtype == DType::kBFloat16)
    widen_lines<DType::kBFloat16>(m, first, last);
  else
    widen_lines<DType::kFloat16>(m, first, last);
}

// after[k][byte]: what a byte makes of the checksum when k more bytes of zeros follow it.
struct CrcTables {
  uint32_t after[8][256];
};
constexpr CrcTables make_tables() {
  CrcTables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0u);
    tables.after[0][byte] = crc;
  }
  for (int k = 1; k < 8; ++k)
    for (int byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables.after[k - 1][byte];
      tables.after[k][byte] = (before >> 8) ^ tables.after[0][before & 255];
    }
  return tables;
}
constexpr CrcTables kTables = make_tables();

// Goes on from `crc`, neither of them inverted, as zlib's results are. Eight bytes at a time.
uint32_t crc_by_tables(const char* data, int64_t bytes, uint32_t crc) {
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word;
    __builtin_memcpy(&word, data, 8);
    word ^= crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTables.after[7 - k][(word >> (8 * k)) & 255];
  }
  for (; bytes > 0; --bytes, ++data)
    crc = (crc >> 8) ^ kTables.after[0][(crc ^ static_cast<uint8_t>(*data)) & 255];
  return crc;
}

#if defined(__PCLMUL__)
using Quad [[gnu::vector_size(16)]] = long long;

// Moves a remainder of 128 bits to where `next` is: `power` holds x^(distance + 32) and
// x^(distance - 32) modulo the polynomial.
LLMCORE_INLINE Quad fold(Quad quad, Quad power, Quad next) {
  return __builtin_ia32_pclmulqdq128(quad, power, 0x00) ^
         __builtin_ia32_pclmulqdq128(quad, power, 0x11) ^ next;
}

#if defined(__VPCLMULQDQ__)
using Quads [[gnu::vector_size(64)]] = long long;  // four side by side

LLMCORE_INLINE Quads fold(Quads quads, Quads power, Quads next) {
  return __builtin_ia32_vpclmulqdq_v8di(quads, power, 0x00) ^
         __builtin_ia32_vpclmulqdq_v8di(quads, power, 0x11) ^ next;
}
constexpr Quads kByStep = {0x11542778a, 0x1322d1430, 0x11542778a, 0x1322d1430,
                           0x11542778a, 0x1322d1430, 0x11542778a, 0x1322d1430};  // 2048 bits
#else
using Quads = Quad;
constexpr Quads kByStep = {0x154442bd4, 0x1c6e41596};  // 512 bits
#endif

// Remainders side by side (Gopal et al. 2009, "Fast CRC computation for generic polynomials using
// PCLMULQDQ"); the last 16 bytes that are congruent to all before go through the tables.
uint32_t crc32(const char* data, int64_t bytes) {
  constexpr int kWays = 4;
  Quads way[kWays];
  constexpr int64_t kStep = sizeof(way);
  if (bytes < kStep) return ~crc_by_tables(data, bytes, ~0u);
  __builtin_memcpy(way, data, kStep);
  way[0] ^= Quads{0xffffffff};
  int64_t done = kStep;
  for (; done + kStep <= bytes; done += kStep) {
    Quads next[kWays];
    __builtin_memcpy(next, data + done, kStep);
    for (int i = 0; i < kWays; ++i) way[i] = fold(way[i], kByStep, next[i]);
  }
  Quad rest[kStep / sizeof(Quad)];
  __builtin_memcpy(rest, way, kStep);
  const Quad by_128 = {0x1751997d0, 0x0ccaa009e};
  Quad last = rest[0];
  for (int64_t i = 1; i < kStep / int64_t{sizeof(Quad)}; ++i) last = fold(last, by_128, rest[i]);
  char bytes_of_last[sizeof(last)];
  __builtin_memcpy(bytes_of_last, &last, sizeof(last));
  return ~crc_by_tables(data + done, bytes - done, crc_by_tables(bytes_of_last, sizeof(last), 0));
}
#else
uint32_t crc32(const char* data, int64_t bytes) {
  return ~crc_by_tables(data, bytes, ~0u);
}
#endif

}  // namespace

extern const LoadingKernels loading_kernels;
const LoadingKernels loading_kernels = {.widen = widen, .crc32 = crc32};

}  // namespace llmcore::LLMCORE_ISA
