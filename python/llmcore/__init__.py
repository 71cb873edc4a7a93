"""llmcore: pretrain, fine-tune and run Transformers on CPU and NVIDIA GPU, without PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmcore import _core
from llmcore._core import Tensor, __version__, from_dlpack
from llmcore.device import (
    cuda_available,
    device_info,
    get_num_threads,
    memory_stats,
    set_num_threads,
)
from llmcore.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    DTypeError,
    EngineClosed,
    LlmcoreError,
    OutOfMemory,
    QueueFull,
    RequestCancelled,
    ShapeError,
    TokenIndexError,
)
from llmcore.tensor import tensor, zeros

if TYPE_CHECKING:
    from llmcore import ops, viz
    from llmcore.config import LoraConfig, ModelConfig, RopeScaling
    from llmcore.data.examples import ExampleDataset
    from llmcore.engine import Engine
    from llmcore.generate import GenerationResult
    from llmcore.generation_config import GenerationConfig
    from llmcore.model import Transformer
    from llmcore.objectives import (
        Batch,
        CausalLM,
        Classification,
        CompletionLM,
        MaskedLM,
        Mixture,
        PrefixLM,
        ReversedLM,
        Seq2Seq,
        SpanCorruption,
    )
    from llmcore.tokenizer import Tokenizer
    from llmcore.train_step import StepResult, TrainStep
    from llmcore.training.train_config import TrainConfig
    from llmcore.training.trainer import Trainer

if _core.cuda_build == "ON":
    from llmcore.libraries import library_folders

    _core.set_library_folders(library_folders())

# Imported on first use, so that `import llmcore` stays quick.
_LAZY: dict[str, str] = {
    "Batch": "llmcore.objectives",
    "CausalLM": "llmcore.objectives",
    "Engine": "llmcore.engine",
    "ExampleDataset": "llmcore.data.examples",
    "LoraConfig": "llmcore.config",
    "Classification": "llmcore.objectives",
    "CompletionLM": "llmcore.objectives",
    "GenerationConfig": "llmcore.generation_config",
    "GenerationResult": "llmcore.generate",
    "MaskedLM": "llmcore.objectives",
    "Mixture": "llmcore.objectives",
    "ModelConfig": "llmcore.config",
    "PrefixLM": "llmcore.objectives",
    "ReversedLM": "llmcore.objectives",
    "RopeScaling": "llmcore.config",
    "Seq2Seq": "llmcore.objectives",
    "SpanCorruption": "llmcore.objectives",
    "StepResult": "llmcore.train_step",
    "Tokenizer": "llmcore.tokenizer",
    "TrainConfig": "llmcore.training.train_config",
    "TrainStep": "llmcore.train_step",
    "Trainer": "llmcore.training.trainer",
    "Transformer": "llmcore.model",
    "ops": "llmcore.ops",
    "viz": "llmcore.viz",
}

__all__ = [
    "Batch",
    "CausalLM",
    "CheckpointError",
    "Classification",
    "CompletionLM",
    "ConfigError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "Engine",
    "EngineClosed",
    "ExampleDataset",
    "GenerationConfig",
    "GenerationResult",
    "LlmcoreError",
    "LoraConfig",
    "MaskedLM",
    "Mixture",
    "ModelConfig",
    "OutOfMemory",
    "PrefixLM",
    "QueueFull",
    "RequestCancelled",
    "ReversedLM",
    "RopeScaling",
    "Seq2Seq",
    "ShapeError",
    "SpanCorruption",
    "StepResult",
    "Tensor",
    "TokenIndexError",
    "Tokenizer",
    "TrainConfig",
    "TrainStep",
    "Trainer",
    "Transformer",
    "__version__",
    "cuda_available",
    "device_info",
    "from_dlpack",
    "get_num_threads",
    "memory_stats",
    "ops",
    "set_num_threads",
    "tensor",
    "viz",
    "zeros",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'llmcore' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = module if module.__name__ == f"llmcore.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
