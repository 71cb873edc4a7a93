// Every pair of element types, as one loop each.
#include "core/convert.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/error.h"

namespace llmcore {
namespace {

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>;

// The arithmetic value of a stored element.
template <class T>
auto value_of(T element) {
  if constexpr (kIsHalf<T>)
    return to_float(element);
  else
    return element;
}

// Whether the integer type Int holds `value` once its fraction is dropped; a NaN it does not.
template <class Int, class Value>
bool fits(Value value) {
  constexpr Int lowest = std::numeric_limits<Int>::min();
  if constexpr (std::is_floating_point_v<Value>) {
    // -lowest is a power of two, exact in any float type, where the highest may not be.
    const Value limit = -static_cast<Value>(lowest), whole = std::trunc(value);
    return whole >= -limit && whole < limit;
  } else {
    return value >= lowest && value <= std::numeric_limits<Int>::max();
  }
}

template <class To, class From>
void convert_all(const Tensor& from, const Tensor& to) {
  const From* source = from.as<From>();
  To* target = to.as<To>();
  const int64_t count = from.numel();
  for (int64_t i = 0; i < count; ++i) {
    const auto value = value_of(source[i]);
    if constexpr (std::is_same_v<To, BFloat16>) {
      target[i] = to_bfloat16(static_cast<float>(value));
    } else if constexpr (std::is_same_v<To, Float16>) {
      target[i] = to_float16(static_cast<float>(value));
    } else if constexpr (std::is_same_v<To, bool>) {
      target[i] = value != 0;
    } else {
      if constexpr (std::is_integral_v<To> && !std::is_same_v<From, bool>)
        CHECK(fits<To>(value), DTypeError, "to: element ", i, " = ", +value, " does not fit ",
              dtype_name(to.dtype));
      target[i] = static_cast<To>(value);
    }
  }
}

template <class Visitor>
void with_type(DType dtype, Visitor visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit(float{});
    case DType::kBFloat16:
      return visit(BFloat16{});
    case DType::kFloat16:
      return visit(Float16{});
    case DType::kInt32:
      return visit(int32_t{});
    case DType::kInt64:
      return visit(int64_t{});
    default:  // packed matrices are no arrays of elements
    case DType::kInt8:
      return visit(int8_t{});
    case DType::kBool:
      return visit(bool{});
  }
}

}  // namespace

void convert(const Tensor& from, const Tensor& to) {
  with_type(from.dtype, [&](auto source) {
    with_type(to.dtype,
              [&](auto target) { convert_all<decltype(target), decltype(source)>(from, to); });
  });
}

}  // namespace llmcore
