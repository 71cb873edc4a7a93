// Typed errors, one per Python exception class, and the checks that throw them.
//
// A message is one sentence that names the operation, the argument, what it must be and what it
// was:
//   norm_forward: weight must have shape [C] = [768], got [512]
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/tensor.h"

namespace llmcore {

// The Python class an error becomes; see bindings/bind_errors.cpp.
enum class ErrorKind { kShape, kDType, kConfig, kDevice, kOutOfMemory, kCheckpoint, kIndex };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <ErrorKind kKind>
struct ErrorOf : Error {
  explicit ErrorOf(const std::string& message) : Error(kKind, message) {}
};
using ShapeError = ErrorOf<ErrorKind::kShape>;
using DTypeError = ErrorOf<ErrorKind::kDType>;
using ConfigError = ErrorOf<ErrorKind::kConfig>;
using DeviceError = ErrorOf<ErrorKind::kDevice>;
using OutOfMemory = ErrorOf<ErrorKind::kOutOfMemory>;
using CheckpointError = ErrorOf<ErrorKind::kCheckpoint>;
using IndexError = ErrorOf<ErrorKind::kIndex>;

// Concatenates anything that has operator<<.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string shape_string(const Tensor& tensor);

#define CHECK(condition, ErrorType, ...)                            \
  do {                                                              \
    if (!(condition)) throw ErrorType(::llmcore::str(__VA_ARGS__)); \
  } while (0)

// `tensor` has exactly the shape `dims`, whose names are `symbols` ("[N, C]"), and `dtype`.
void check_tensor(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                  std::initializer_list<int64_t> dims, DType dtype = DType::kFloat32);

// The same, where an empty tensor is allowed ("not wanted").
void check_optional(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                    std::initializer_list<int64_t> dims, DType dtype = DType::kFloat32);

}  // namespace llmcore
