// Names of the element types and the IEEE half-precision conversions.
#include "core/dtype.h"

#include <cstring>

#include "core/error.h"

namespace llmcore {
namespace {
constexpr const char* kNames[] = {"float32",     "bfloat16",   "float16", "int32",
                                  "int64",       "int8",       "bool",    "packed bfloat16",
                                  "packed int8", "packed int4"};
constexpr int kElementTypes = 7;  // those before the packed ones
}  // namespace

const char* dtype_name(DType dtype) {
  return kNames[static_cast<int>(dtype)];
}

DType dtype_from_name(const char* name) {
  for (int i = 0; i < kElementTypes; ++i)
    if (std::strcmp(name, kNames[i]) == 0) return static_cast<DType>(i);
  std::string known;
  for (int i = 0; i < kElementTypes; ++i) known += std::string(i == 0 ? "" : ", ") + kNames[i];
  throw DTypeError(str("dtype '", name, "' is unknown; there are ", known));
}

float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: the mantissa counts units of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255u : exponent + 112u;
  return __builtin_bit_cast(float, sign | (biased << 23) | (mantissa << 13));
}

Float16 to_float16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa and rounds to even
    const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, aligned) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace llmcore
