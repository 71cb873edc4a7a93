// Threads, memory, and what this machine has.
#include <pybind11/stl.h>

#include "bindings/py_tensor.h"
#include "core/buffer.h"
#include "core/captured.h"
#include "core/gpu.h"
#include "core/libraries.h"
#include "core/machine.h"
#include "core/parallel.h"
#include "core/settings.h"
#include "ops/backend.h"
#include "ops/ceiling.h"

namespace llmcore::bindings {
namespace {

using namespace py::literals;

py::dict cuda_facts() {
  const std::string reason = cuda_unavailable_reason(), build = LLMCORE_CUDA_BUILD;
  py::dict facts;
  facts["build"] = build;
  facts["available"] = reason.empty();
  facts["reason"] = reason;
  if (build == "OFF") return facts;
  const CudaInfo info = cuda_info();
  py::list devices;
  for (const CudaDevice& device : info.devices)
    devices.append(
        py::dict("name"_a = device.name, "memory_bytes"_a = device.memory_bytes,
                 "capability"_a = py::make_tuple(device.capability[0], device.capability[1]),
                 "multiprocessors"_a = device.multiprocessors));
  facts["driver_version"] = info.driver_version;
  facts["runtime_version"] = info.runtime_version;
  facts["devices"] = devices;
  facts["libraries"] = py::dict(
      "cublasLt"_a = py::dict("path"_a = info.library_path, "reason"_a = info.library_reason));
  return facts;
}

py::dict device_info() {
  const CoreCounts cores = core_counts();
  const KernelNames available = available_cpu_kernels();
  py::list names;
  for (int i = 0; i < available.count; ++i) names.append(available.names[i]);
  py::dict info;
  info["cpu_model"] = cpu_model();
  info["isa_available"] = names;
  info["isa_chosen"] = cpu_kernels().name;
  info["isa_has_dot"] = cpu_kernels().has_dot;
  info["num_threads"] = num_threads();
  info["logical_cores"] = cores.logical;
  info["affinity_cores"] = cores.affinity;
  info["physical_cores"] = cores.physical;
  info["quota_cores"] = cores.quota;
  info["memory_bytes"] = memory_bytes();
  info["cuda"] = cuda_facts();
  py::dict variables;
  variables["LLMCORE_CPU_ISA"] = settings().cpu_isa;
  variables["LLMCORE_NUM_THREADS"] = settings().num_threads;
  variables["LLMCORE_DEVICE"] = settings().device;
  variables["LLMCORE_CACHE_DIR"] = settings().cache_dir;
  info["settings"] = variables;
  return info;
}

double peak(double seconds, const std::string& dtype) {
  const DType of = dtype_from_name(dtype.c_str());
  py::gil_scoped_release release;
  return measure_peak(cpu_kernels(), of, seconds);
}

double read_rate(const PyTensor& x, double seconds) {
  check_same_device("measure_read", {}, x.view.device);
  py::gil_scoped_release release;
  return measure_read(op_context(x.view), x.view, seconds);
}

}  // namespace

void bind_machine(py::module_& module) {
  module.def("device_info", &device_info);
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("get_num_threads", &num_threads);
  module.attr("cuda_build") = LLMCORE_CUDA_BUILD;  // OFF, ON, EMULATED
  module.def("set_library_folders", &set_library_folders, py::arg("folders"));
  module.def("cuda_unavailable_reason", &cuda_unavailable_reason);
  module.def(
      "memory_stats",
      [](const std::string& device) {
        const MemoryStats stats = memory_stats(device_from_name(device).type);
        py::dict result;
        result["current_bytes"] = stats.current_bytes;
        result["peak_bytes"] = stats.peak_bytes;
        return result;
      },
      py::arg("device") = "cpu");
  module.def(
      "reset_peak_memory",
      [](const std::string& device) { reset_peak_memory(device_from_name(device).type); },
      py::arg("device") = "cpu");
  module.def(
      "free_memory", [](int index) { return gpu::free_memory(index); }, py::arg("index"));
  module.def("captured_counts", [] {
    const CapturedCounts counts = captured_counts();
    return std::pair(counts.captures, counts.replays);
  });
  module.def("tune_products", &gpu::tune_products, py::arg("on"));
  module.def(
      "product_choices",
      [](const std::string& device) {
        py::dict choices;
        for (const auto& [product, choice] : gpu::product_choices(device_from_name(device).index))
          choices[py::str(product)] = choice;
        return choices;
      },
      py::arg("device"));
  module.def("measure_peak", &peak, py::arg("seconds"), py::arg("dtype") = "float32");
  module.def("measure_read", &read_rate, py::arg("x"), py::arg("seconds"));
}

}  // namespace llmcore::bindings
