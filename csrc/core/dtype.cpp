// Names of the element types.
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

}  // namespace llmcore
