"""What this installation and this machine offer, and why something is not there."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcore.training.log import format_bytes
from llmcore.training.plan import available_memory

# Optional packages by what they give; their names are those of the extras in pyproject.toml.
_EXTRAS = {
    "tensorboard": "TensorBoard events from llmcore train --tensorboard",
    "pyarrow": "Parquet files in llmcore tokenize",
    "huggingface_hub": "models by repository name",
    "matplotlib": "pictures as PNG",
}

# What CUDA 13 and our kernels ask for.
_OLDEST_DRIVER, _OLDEST_CAPABILITY = "580", (8, 0)

_DOT = "dot products by instructions of their own (AVX-512 BF16 and VNNI)"
_NO_DOT = (
    "widened to float32 and int16 first, which saves memory, not arithmetic"
    " (instructions of their own: AVX-512 BF16 with VNNI)"
)


def examine() -> dict[str, Any]:
    """Collect everything the report shows, as plain values ready for JSON.

    Returns:
        A dictionary with "versions", "extras" (name → version or None), "machine" (what
        `llmcore.device_info` says), "memory_available_bytes", "huge_pages" and "problems":
        sentences about what keeps this machine from its full speed.
    """
    import llmcore

    machine = llmcore.device_info()
    pages = huge_pages()
    return {
        "versions": {
            "llmcore": llmcore.__version__,
            "python": platform.python_version(),
            "numpy": _installed("numpy"),
            "tokenizers": _installed("tokenizers"),
            "rich": _installed("rich"),
            "typer": _installed("typer"),
            "system": platform.platform(),
        },
        "extras": {name: _installed(name) for name in _EXTRAS},
        "machine": machine,
        "memory_available_bytes": available_memory(),
        "huge_pages": pages,
        "problems": [
            *find_problems(machine, pages),
            *cuda_problems(machine["cuda"], has_driver=Path("/proc/driver/nvidia").is_dir()),
        ],
    }


def find_problems(machine: Mapping[str, Any], pages: str) -> list[str]:
    """Say what makes this machine slower than it could be, each with its cure."""
    found = []
    available = machine["isa_available"]
    if available and machine["isa_chosen"] != available[-1]:
        found.append(
            f"kernels for {machine['isa_chosen']} were chosen although this CPU has"
            f" {available[-1]}: unset LLMCORE_CPU_ISA"
        )
    if machine["isa_chosen"] == "generic":
        found.append("no vector kernels fit this CPU, so the plain ones run; expect little speed")
    quota = machine["quota_cores"]
    if quota and machine["num_threads"] > quota:
        found.append(
            f"{machine['num_threads']} threads share a quota of {quota:g} processors:"
            f" set LLMCORE_NUM_THREADS={max(1, int(quota))}"
        )
    if pages == "never":
        found.append(
            "transparent huge pages are off, which slows large matrices: as root, write madvise"
            " to /sys/kernel/mm/transparent_hugepage/enabled"
        )
    return found


def cuda_problems(cuda: Mapping[str, Any], has_driver: bool = False) -> list[str]:
    """Say what keeps a GPU from being used, each with its cure.

    Args:
        cuda: what `device_info` says: "build" (OFF, ON or EMULATED) and, as far as they are known,
            "driver_version" and "runtime_version" (13000 is CUDA 13.0; 0: no driver), "devices"
            (each with "name", "memory_bytes" and "capability", a pair) and "libraries" (file →
            "path" and "reason", one of which is empty).
        has_driver: whether NVIDIA's kernel driver runs here.
    """
    if cuda["build"] == "EMULATED":
        return ["this build emulates a GPU on the CPU, for tests alone: build it without"]
    if cuda["build"] == "OFF":
        cure = "install it with LLMCORE_CUDA=ON in the environment, as README.md says"
        return (
            [f"this build has no CUDA back end, but there is a GPU: {cure}"] if has_driver else []
        )
    found = []
    driver, runtime = cuda.get("driver_version"), cuda.get("runtime_version", 13000)
    if driver == 0:
        found.append(
            "libcuda.so.1, the CUDA part of NVIDIA's driver, was not found: "
            + (
                "give the container its GPU (docker run --gpus all)"
                if has_driver
                else f"install the driver, {_OLDEST_DRIVER} or later; without a GPU, use the CPU"
            )
        )
    elif driver is not None and driver // 1000 < runtime // 1000:
        found.append(
            f"NVIDIA's driver runs CUDA up to {_version(driver)}, this build needs"
            f" {_version(runtime)}: install driver {_OLDEST_DRIVER} or later"
        )
    elif cuda.get("devices") == []:
        found.append(
            "the driver shows no GPU: see whether CUDA_VISIBLE_DEVICES hides it, and what"
            " nvidia-smi lists"
        )
    for index, device in enumerate(cuda.get("devices", ())):
        if tuple(device["capability"]) < _OLDEST_CAPABILITY:
            found.append(
                f"cuda:{index}, {device['name']}, has compute capability"
                f" {_dotted(device['capability'])}; {_dotted(_OLDEST_CAPABILITY)} is the least"
            )
    found += [
        library["reason"] for library in cuda.get("libraries", {}).values() if library["reason"]
    ]
    return found


def cuda_rows(cuda: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lay out what is known of CUDA: `cuda_problems` says which facts those are."""
    rows = [("cuda", "available" if cuda["available"] else f"not available: {cuda['reason']}")]
    if "driver_version" in cuda:
        driver = cuda["driver_version"]
        needed = f" (this build needs {_version(cuda.get('runtime_version', 13000))})"
        rows.append(("driver", f"runs CUDA {_version(driver)}{needed}" if driver else "none"))
    rows += [
        (
            f"cuda:{index}",
            f"{device['name']}, {format_bytes(device['memory_bytes'])},"
            f" compute capability {_dotted(device['capability'])}",
        )
        for index, device in enumerate(cuda.get("devices", ()))
    ]
    rows += [(name, lib["path"] or "not found") for name, lib in cuda.get("libraries", {}).items()]
    return rows


def huge_pages() -> str:
    """The kernel's setting for transparent huge pages: always, madvise, never, or unknown."""
    try:
        path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        return path.read_text(encoding="ascii").partition("[")[2].partition("]")[0] or "unknown"
    except OSError:
        return "unknown"


def report(facts: Mapping[str, Any]) -> str:
    """Lay out what `examine` found for people."""
    machine, versions = facts["machine"], facts["versions"]
    quota = f"{machine['quota_cores']:g}" if machine["quota_cores"] else "none"
    free = facts["memory_available_bytes"]
    rows = [
        ("llmcore", versions["llmcore"]),
        ("python", f"{versions['python']} on {versions['system']}"),
        ("packages", _list(versions, ("numpy", "tokenizers", "rich", "typer"))),
        ("", ""),
        ("cpu", machine["cpu_model"]),
        (
            "kernels",
            f"{machine['isa_chosen']} (this CPU has: {', '.join(machine['isa_available'])})",
        ),
        ("bfloat16, int8", _DOT if machine["isa_has_dot"] else _NO_DOT),
        (
            "threads",
            f"{machine['num_threads']} (cores: {machine['physical_cores']} physical,"
            f" {machine['affinity_cores']} allowed of {machine['logical_cores']};"
            f" container quota: {quota})",
        ),
        (
            "memory",
            format_bytes(machine["memory_bytes"])
            + (f", {format_bytes(free)} available" if free is not None else ""),
        ),
        ("huge pages", facts["huge_pages"]),
        *cuda_rows(machine["cuda"]),
    ]
    settings = machine.get("settings", {})
    if settings:
        set_ones = ", ".join(f"{name}={value}" for name, value in settings.items() if value)
        rows.append(("environment", set_ones or f"none of {', '.join(settings)} is set"))
    rows.append(("", ""))
    for name, installed in facts["extras"].items():
        rows.append((name, installed or f"not installed; it would give {_EXTRAS[name]}"))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}".rstrip() for name, value in rows]
    problems = facts["problems"] or ["nothing stands in the way"]
    return "\n".join([*lines, "", *problems])


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _dotted(capability: Sequence[int]) -> str:
    return ".".join(map(str, capability))


def _list(versions: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in names)


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
