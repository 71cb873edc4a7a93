// Widening and checksums against plain loops.
#include "checking.h"
#include "ops/loading.h"

namespace llmcore::checking {
namespace {

void check_widen(int64_t rows, int64_t cols, DType dtype, bool transposed) {
  const int64_t size = dtype_size(dtype);
  std::vector<uint16_t> bits(rows * cols);
  const Floats values = random_floats(rows * cols);
  const char* data = reinterpret_cast<const char*>(values.data());
  Floats wanted = values, y = unwritten(rows * cols);
  if (dtype != DType::kFloat32) {
    const bool brain = dtype == DType::kBFloat16;
    for (int64_t i = 0; i < rows * cols; ++i) {
      bits[i] = brain ? to_bfloat16(values[i]).bits : to_float16(values[i]).bits;
      wanted[i] = brain ? to_float(BFloat16{bits[i]}) : to_float(Float16{bits[i]});
    }
    data = reinterpret_cast<const char*>(bits.data());
  }
  widen(context(), {{.dtype = dtype,
                     .x = data,
                     .rows = rows,
                     .cols = cols,
                     .row_stride = transposed ? size : cols * size,
                     .col_stride = transposed ? rows * size : size,
                     .y = y.data()}});
  Floats moved = wanted;
  for (int64_t i = 0; transposed && i < rows * cols; ++i)
    moved[i] = wanted[i % cols * rows + i / cols];
  check_equal("widen " + std::string(dtype_name(dtype)) + " " + std::to_string(rows) + " x " +
                  std::to_string(cols) + (transposed ? " transposed" : ""),
              y, moved);
}

void check_crc32(int64_t bytes, uint32_t start) {
  std::string data;
  for (const int32_t byte : random_ints(bytes, 256)) data += static_cast<char>(byte);
  uint32_t wanted = ~start;
  for (const char byte : data) {
    wanted ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) wanted = (wanted >> 1) ^ (wanted & 1 ? 0xedb88320u : 0u);
  }
  report("crc32 of " + std::to_string(bytes),
         crc32(context(), data.data(), bytes, start) == ~wanted);
}

}  // namespace

void check_loading() {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (const bool transposed : {false, true})
      for (const int64_t rows : {1, 5, 32, 301})
        for (const int64_t cols : {1, 7, 64, 530}) check_widen(rows, cols, dtype, transposed);
  report("crc32 of the digits", crc32(context(), "123456789", 9, 0) == 0xcbf43926u);
  for (const int64_t bytes : {0, 1, 63, 64, 200, 2'500'000}) check_crc32(bytes, 77);
}

}  // namespace llmcore::checking
