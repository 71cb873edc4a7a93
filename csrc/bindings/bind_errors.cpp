// Turns C++ errors into the classes of llmcore.errors.
#include "bindings/py_tensor.h"
#include "core/error.h"

namespace llmcore::bindings {
namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kShape:
      return "ShapeError";
    case ErrorKind::kDType:
      return "DTypeError";
    case ErrorKind::kConfig:
      return "ConfigError";
    case ErrorKind::kDevice:
      return "DeviceError";
    case ErrorKind::kOutOfMemory:
      return "OutOfMemory";
    case ErrorKind::kCheckpoint:
      return "CheckpointError";
    case ErrorKind::kIndex:
      return "TokenIndexError";
  }
  return "LlmcoreError";
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      const py::object type = py::module_::import("llmcore.errors").attr(class_name(error.kind()));
      py::set_error(type, error.what());
    }
  });
}

}  // namespace llmcore::bindings
