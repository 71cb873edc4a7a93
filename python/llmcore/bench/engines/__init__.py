"""Who can be measured: one module an engine, which alone imports it, and what each can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmcore.bench.operations import Operations
from llmcore.bench.turns import Contestant
from llmcore.bench.workloads import Generation, Training
from llmcore.errors import ConfigError, did_you_mean

OURS = "llmcore"

#: The engines beside llmcore that can run each kind of workload.
PEERS: dict[type, tuple[str, ...]] = {
    Training: ("torch", "torch-compile"),
    Generation: ("transformers", "ctranslate2", "llama.cpp"),
    Operations: ("torch", "onnxruntime", "numpy"),
}
_FUNCTIONS = {Training: "train", Generation: "generate", Operations: "operations"}
# Engines whose module has another name, and the arguments of their own.
_MODULES = {"llama.cpp": "llama_cpp", "torch-compile": "torch"}
_ARGUMENTS: dict[str, dict[str, Any]] = {"torch-compile": {"compiled": True}}
_OPERATIONS = {"llmcore": "llmcore_operations", "torch": "torch_operations"}
_ON_GPU = ("torch", "torch-compile", "transformers")
# To generate they read files of their own or rounded ones, which are made of ours beforehand.
_CONVERTED = ("llmcore", "ctranslate2", "llama.cpp")


def contestants(
    workload: Training | Generation | Operations, peers: Sequence[str], **options: Any
) -> list[Contestant]:
    """Return llmcore and the peers that are wanted, each ready to be measured.

    Args:
        workload: What they are to run.
        peers: Their names.
        options: More arguments for all of them; "device" is where they run, if not on the CPU.

    Raises:
        ConfigError: A peer that cannot run the workload, or not there, is no peer at all, or is
            named twice.

    Example:
        >>> [c.build for c in contestants(Training("gpt-nano", 1, 8), ["torch"])]
        ['llmcore.bench.engines.llmcore:train', 'llmcore.bench.engines.torch:train']
    """
    kind = type(workload)
    known = PEERS[kind]
    if kind is Operations and "device" in options:
        raise ConfigError("operations by themselves are timed on the CPU alone")
    for peer in peers:
        if peer not in known:
            raise ConfigError(
                f"against must be some of {', '.join(known)}, got {peer!r}"
                + did_you_mean(peer, known)
            )
        if "device" in options and peer not in _ON_GPU:
            raise ConfigError(
                f"against must be some of {', '.join(_ON_GPU)} on a GPU, got {peer!r}"
            )
    if len(set(peers)) < len(peers):
        raise ConfigError(f"against must name each engine once, got {','.join(peers)}")
    found = []
    for name in (OURS, *peers):
        module = f"{__name__}.{_MODULES.get(name, name)}"
        if kind is Operations and name in _OPERATIONS:
            module = f"{__name__}.{_OPERATIONS[name]}"
        found.append(
            Contestant(
                name,
                f"{module}:{_FUNCTIONS[kind]}",
                {"workload": asdict(workload), **options, **_ARGUMENTS.get(name, {})},
                prepare=f"{module}:convert" if kind is Generation and name in _CONVERTED else None,
            )
        )
    return found
