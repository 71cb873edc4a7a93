"""What this installation and this machine offer, and why something is not there."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
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
        "problems": find_problems(machine, pages),
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
    cuda = machine["cuda"]
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
        ("cuda", "available" if cuda["available"] else f"not available: {cuda['reason']}"),
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


def _list(versions: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in names)


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
