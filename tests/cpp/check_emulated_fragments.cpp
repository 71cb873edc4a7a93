// Emulated tensor cores and their loads against plain loops: who holds which element. And fast
// exponentials.
#include "cuda/ptx.h"
#include "cuda/shared.h"
#include "on_device.h"

namespace llmcore::checking {
namespace {

// d [16, 8] = a [16, k] b [k, 8], both loaded by ldmatrix; b is stored transposed or as it is.
__global__ void multiply_bfloat16(const uint16_t* a, const uint16_t* b, float* d, int k,
                                  bool transposed) {
  const int lane = static_cast<int>(threadIdx.x);
  uint16_t* tile_a = cuda::dynamic_shared<uint16_t>();  // [16, k]
  uint16_t* tile_b = tile_a + 16 * k;                   // [8, k], or [k, 8]
  for (int i = lane; i < 16 * k / 8; i += 32) cuda::cp_async16(tile_a + i * 8, a + i * 8, true);
  cuda::cp_async_commit();
  for (int i = lane; i < 8 * k / 8; i += 32) cuda::cp_async16(tile_b + i * 8, b + i * 8, true);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  __syncwarp();
  float sums[4] = {};
  for (int start = 0; start < k; start += 16) {
    uint32_t part_a[4], part_b[2];
    cuda::ldmatrix_x4(part_a, tile_a + lane % 16 * k + start + lane / 16 * 8);
    if (transposed)
      cuda::ldmatrix_x2(part_b, tile_b + lane % 8 * k + start + lane / 8 % 2 * 8);
    else
      cuda::ldmatrix_x2_transposed(part_b, tile_b + (start + lane % 16) * 8);
    cuda::mma_bfloat16(sums, part_a, part_b);
  }
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

void check_mma_bfloat16(bool transposed) {
  const int k = 48;
  Floats a = random_floats(16 * k), b = random_floats(k * 8);
  std::vector<uint16_t> a_bits(16 * k), b_bits(k * 8);
  for (int i = 0; i < 16 * k; i += 2) {
    const uint32_t both = cuda::pack_bfloat16(a[i], a[i + 1]);
    a_bits[i] = static_cast<uint16_t>(both);
    a_bits[i + 1] = static_cast<uint16_t>(both >> 16);
  }
  for (int i = 0; i < k * 8; ++i) b_bits[i] = to_bfloat16(b[i]).bits;
  for (int i = 0; i < 16 * k; ++i) a[i] = to_float(BFloat16{a_bits[i]});
  for (int i = 0; i < k * 8; ++i) b[i] = to_float(BFloat16{b_bits[i]});
  const Array<uint16_t> from_a(a_bits), from_b(b_bits);
  const Array<float> to(16 * 8);
  start(nullptr, 1, 32, (16 + 8) * k * 2, multiply_bfloat16, from_a.data, from_b.data, to.data, k,
        transposed);
  check(transposed ? "mma bf16, b transposed" : "mma bf16", to.read(), [&](auto zero) {
    std::vector<decltype(zero)> d(16 * 8);
    for (int i = 0; i < 16 * 8 * k; ++i) {
      const int row = i / k / 8, col = i / k % 8, j = i % k;
      d[i / k] += decltype(zero)(a[row * k + j]) * (transposed ? b[col * k + j] : b[j * 8 + col]);
    }
    return d;
  });
}

// d [16, 8] = a [16, 32] b [8, 32]^T of int8, loaded word by word as the fragments lie.
__global__ void multiply_int8(const uint32_t* a, const uint32_t* b, int* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const uint32_t part_a[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4],
                              a[(g + 8) * 8 + t + 4]};
  const uint32_t part_b[2] = {b[g * 8 + t], b[g * 8 + t + 4]};
  int sums[4] = {1, 1, 1, 1};
  cuda::mma_int8(sums, part_a, part_b);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}

void check_mma_int8() {
  const Ints words_a = random_ints(128, 0x7fffffff), words_b = random_ints(64, 0x7fffffff);
  const Array<int> a(words_a), b(words_b), to(16 * 8);
  start(nullptr, 1, 32, 0, multiply_int8, reinterpret_cast<const uint32_t*>(a.data),
        reinterpret_cast<const uint32_t*>(b.data), to.data);
  const auto* bytes_a = reinterpret_cast<const int8_t*>(words_a.data());
  const auto* bytes_b = reinterpret_cast<const int8_t*>(words_b.data());
  Ints wanted(16 * 8, 1);
  for (int i = 0; i < 16 * 8 * 32; ++i)
    wanted[i / 32] += bytes_a[i / 32 / 8 * 32 + i % 32] * bytes_b[i / 32 % 8 * 32 + i % 32];
  expect("mma int8", to.read() == wanted);
}

__global__ void transpose(const uint16_t* x, uint16_t* y) {
  alignas(16) __shared__ uint16_t tile[32 * 8];
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 8; ++i) tile[lane * 8 + i] = x[lane * 8 + i];
  __syncwarp();
  uint32_t r[4];
  cuda::ldmatrix_x4_transposed(r, tile + lane * 8);
  for (int m = 0; m < 4; ++m) {
    y[m * 64 + g * 8 + 2 * t] = static_cast<uint16_t>(r[m]);
    y[m * 64 + g * 8 + 2 * t + 1] = static_cast<uint16_t>(r[m] >> 16);
  }
}

void check_ldmatrix() {
  std::vector<uint16_t> x(256), wanted(256);
  for (int i = 0; i < 256; ++i) x[i] = static_cast<uint16_t>(i);
  for (int i = 0; i < 256; ++i) wanted[i / 64 * 64 + i % 8 * 8 + i / 8 % 8] = x[i];
  const Array<uint16_t> from(x), to(256);
  start(nullptr, 1, 32, 0, transpose, from.data, to.data);
  expect("ldmatrix transposed", to.read() == wanted);
}

__global__ void take_exponentials(const float* x, float* y) {
  y[threadIdx.x] = cuda::fast_exp2(x[threadIdx.x]);
}

void check_fast_exp2() {
  const Array<float> x({-INFINITY, -200.0f, -126.5f, -126.0f, -1.5f, 0.0f, 127.0f, 128.0f}), y(8);
  start(nullptr, 1, 8, 0, take_exponentials, x.data, y.data);
  expect("fast_exp2", y.read() == Floats{0.0f, 0.0f, 0.0f, 0x1p-126f, std::exp2(-1.5f), 1.0f,
                                         0x1p127f, INFINITY});
}

}  // namespace

void check_fragments() {
  check_mma_bfloat16(false);
  check_mma_bfloat16(true);
  check_mma_int8();
  check_ldmatrix();
  check_fast_exp2();
}

}  // namespace llmcore::checking
