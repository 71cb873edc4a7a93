"""What is here: the GPU, its driver, and the versions of all that figures depend on."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import llmcore
from gpu_items import Absent, Part, Result, Setting, Tell, torch_on_gpu
from llmcore import _core

_QUERY = (
    "name", "driver_version", "memory.total", "memory.free", "clocks.sm", "clocks.max.sm",
    "clocks.mem", "power.limit", "temperature.gpu", "compute_mode", "mig.mode.current",
)  # fmt: skip
# CUdevice_attribute of cuda.h.
_ATTRIBUTES = {
    "multiprocessors": 16,
    "memory_bus_bits": 37,
    "memory_khz": 36,
    "clock_khz": 13,
    "l2_bytes": 38,
    "capability_major": 75,
    "capability_minor": 76,
    "shared_bytes_per_block": 97,
}
_PACKAGES = (
    "torch", "transformers", "triton", "numpy", "nvidia-cublas", "nvidia-cudnn-cu13",
    "nvidia-cuda-nvrtc", "nvidia-nccl-cu13", "pytest",
)  # fmt: skip


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts."""
    return [
        Part("versions", _versions, 20),
        Part("gpu", _gpu, 20),
        Part("build", _build, 20),
        Part("cublas", _cublas, 20),
        Part("torch", _torch, 60),
    ]


def _versions(tell: Tell) -> Result:
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    versions |= {"llmcore": llmcore.__version__, "python": platform.python_version()}
    return {
        "versions": versions,
        "machine": platform.processor() or platform.machine(),
        "kernel": platform.release(),
        "logical_cores": os.cpu_count(),
        "tools": {name: shutil.which(name) for name in ("nvcc", "compute-sanitizer", "ncu")},
        "line": ", ".join(f"{name} {text}" for name, text in versions.items()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(tell: Tell) -> Result:
    if _core.cuda_build == "EMULATED":
        return {"name": "emulated", "line": "emulated"}
    attributes = _attributes()
    # As llmcore sees it, where the driver's tool is not there.
    devices = llmcore.device_info()["cuda"].get("devices") or [{}]
    report: Result = {"name": devices[0].get("name", "unknown"), "devices": devices, **attributes}
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        report |= dict(zip(_QUERY, output.splitlines()[0].split(", "), strict=True))
    except (OSError, subprocess.CalledProcessError) as error:
        report["nvidia_smi"] = str(error)
    report["line"] = (
        f"{report['name']}, driver {report.get('driver_version')}, {report.get('memory.total')}, "
        f"{attributes.get('multiprocessors')} multiprocessors"
    )
    return report


def _attributes() -> dict[str, int]:
    """Ask the driver itself."""
    driver, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    if status := driver.cuInit(0):
        raise RuntimeError(f"cuInit returned {status}")
    found = {}
    for name, attribute in _ATTRIBUTES.items():
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) == 0:
            found[name] = value.value
    driver.cuDriverGetVersion(ctypes.byref(value))
    return {**found, "driver_cuda_version": value.value}


def _build(tell: Tell) -> Result:
    """For which chips the extension has code: sm_90a has wgmma."""
    info = llmcore.device_info()
    extension = Path(_core.__file__)
    report: Result = {
        "cuda": info["cuda"],
        "isa_chosen": info["isa_chosen"],
        "num_threads": info["num_threads"],
        "extension_bytes": extension.stat().st_size,
    }
    tool = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if tool is not None and _core.cuda_build == "ON":
        output = subprocess.run([tool, "--list-elf", "--list-ptx", str(extension)],
                                capture_output=True, text=True, check=True).stdout  # fmt: skip
        files = [line.split()[-1] for line in output.splitlines() if line.strip()]
        report["chips"] = sorted({part for f in files for part in f.split(".") if "sm_" in part})
        report["knows_sm_90a"] = "sm_90a" in report["chips"]
    reason = info["cuda"]["reason"]
    report["line"] = f"{info['cuda']['build']}, {reason or 'cuda available'}" + (
        f", {', '.join(report['chips'])}" if "chips" in report else ""
    )
    return report


def _cublas(tell: Tell) -> Result:
    """Ask the copy that llmcore has opened for its version."""
    if _core.cuda_build != "ON":
        raise Absent(f"the build is {_core.cuda_build}")
    path = llmcore.device_info()["cuda"]["libraries"]["cublasLt"]["path"]
    library = ctypes.CDLL(path)
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    number = int(library.cublasLtGetVersion())
    return {"version": number, "path": path, "line": f"cuBLASLt {number}"}


def _torch(tell: Tell) -> Result:
    torch = torch_on_gpu()
    free, total = torch.cuda.mem_get_info()
    text = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "free_bytes": free,
        "total_bytes": total,
        "line": f"{text}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free",
    }
