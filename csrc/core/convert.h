// Conversion between element types.
#pragma once

#include "core/tensor.h"

namespace llmcore {

// Writes the elements of `from` to `to`, of as many elements on the CPU, in the type of `to`.
// Floats round to nearest, ties to even; floats become integers by dropping the fraction. Throws
// DTypeError for a number that an integer type cannot hold, naming it and its place.
void convert(const Tensor& from, const Tensor& to);

}  // namespace llmcore
