"""What of a model is trained: low-rank adapters added and merged, parameters frozen and thawed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import ConfigError, DTypeError, did_you_mean
from llmcore.parameters import is_trained, parameter_shapes
from llmcore.tensor import write
from llmcore.validation import as_path, check_seed

if TYPE_CHECKING:
    from llmcore.model import Transformer
    from llmcore.safetensors_io import Array

#: What is trained beside the adapters: parts that a base model does not come with.


def freeze_base(model: Transformer) -> None:
    """Freeze what a model with adapters starts with frozen: all but them, classifier and pooler.

    Raises:
        ConfigError: none of the adapters' targets is a layer of this model.
    """
    names = list(model._core.trainable())
    adapters = {name for name in names if is_adapter(name)}
    if not adapters and model.config.lora is not None:
        raise ConfigError(
            f"LoraConfig: targets {model.config.lora.targets} are no layers of this model; "
            "'gate' needs gated_ffn"
        )
    for name in names:
        model._core.set_trainable(name, is_trained(model.config, name))


def is_adapter(name: str) -> bool:
    """Whether a parameter is half of an adapter.

    Example:
        >>> is_adapter("decoder.layers.0.self_attention.q.lora_a")
        True
    """
    return name.endswith((".lora_a", ".lora_b"))


def add_lora(model: Transformer, config: LoraConfig, *, seed: int = 0) -> None:
    """Do the work of `Transformer.add_lora`."""
    if not isinstance(config, LoraConfig):
        raise DTypeError(
            "add_lora: config must be a LoraConfig, for example LoraConfig(rank=8), "
            f"got a {type(config).__name__}"
        )
    check_seed(seed, "add_lora: seed")
    model._require_float32("add_lora")
    if model.config.lora is not None:
        raise ConfigError("add_lora: the model has adapters already; merge them first: merge_lora")
    _rebuild(model, dataclasses.replace(model.config, lora=config), arrays(model), seed)


def merge_lora(model: Transformer) -> None:
    """Do the work of `Transformer.merge_lora`."""
    lora = model.config.lora
    if lora is None:
        raise ConfigError("merge_lora: the model has no adapters; add_lora adds them")
    from llmcore import ops  # opening a model needs none of them

    model._require_float32("merge_lora")
    parameters = arrays(model)
    for stem in adapted(parameters):
        share = ops.matmul(parameters[f"{stem}.lora_b"], parameters[f"{stem}.lora_a"]).numpy()
        share *= np.float32(lora.alpha / lora.rank)
        parameters[f"{stem}.weight"] = parameters[f"{stem}.weight"] + share
    _rebuild(model, dataclasses.replace(model.config, lora=None), parameters, None)


def adapted(names: Iterable[str]) -> list[str]:
    """List the linear layers that have an adapter, without the last part of their names.

    Example:
        >>> adapted(["encoder.layers.0.feed_forward.up.lora_a"])
        ['encoder.layers.0.feed_forward.up']
    """
    return [name.removesuffix(".lora_a") for name in names if name.endswith(".lora_a")]


def arrays(model: Transformer) -> dict[str, Array]:
    """Every parameter as an array, which on the CPU shares its memory."""
    return {name: tensor.numpy() for name, tensor in model.parameters().items()}


def _rebuild(
    model: Transformer, config: ModelConfig, parameters: Mapping[str, Array], seed: int | None
) -> None:
    """Give a model another core, with the parameters that both have; nothing changes on failure."""
    core, old = _core.Transformer(config.to_dict(), model.device, seed), (model._core, model.config)
    core.recompute = model.recompute
    for name, tensor in core.parameters().items():
        if name in parameters:
            write(tensor, parameters[name])
    model._core, model.config = core, config
    if config.lora is not None:
        try:
            freeze_base(model)
        except ConfigError:
            model._core, model.config = old
            raise


def save_adapter(
    model: Transformer, path: str | os.PathLike[str], *, base_model: str | None = None
) -> None:
    """Do the work of `Transformer.save_adapter`."""
    from llmcore import peft_files

    if model.config.lora is None:
        raise ConfigError("save_adapter: the model has no adapters; add_lora adds them")
    model._require_float32("save_adapter")
    trained = [name for name in trainable_parameters(model) if not is_adapter(name)]
    path = as_path(path, "save_adapter: path")
    peft_files.save(path, model.config, arrays(model), trained, base_model=base_model)


def load_adapter(model: Transformer, path: str | os.PathLike[str]) -> None:
    """Do the work of `Transformer.load_adapter`."""
    from llmcore import peft_files

    model._require_float32("load_adapter")
    path = as_path(path, "load_adapter: path")
    adapter = peft_files.load(path, dataclasses.replace(model.config, lora=None))
    if model.config.lora is None:
        add_lora(model, adapter.lora)
    elif model.config.lora != adapter.lora:
        raise ConfigError(
            f"load_adapter: the model has other adapters, {model.config.lora}, than {path}, "
            f"{adapter.lora}; merge_lora merges them into the weights"
        )
    for name, tensor in model.parameters().items():
        if name in adapter.parameters:
            write(tensor, adapter.parameters[name])
            model._core.set_trainable(name, True)
        elif is_adapter(name):  # a layer the file leaves alone
            write(tensor, 0.0)


def trainable_parameters(model: Transformer) -> dict[str, Any]:
    """Do the work of `Transformer.trainable_parameters`."""
    trainable = model._core.trainable()
    return {name: tensor for name, tensor in model.parameters().items() if trainable[name]}


def set_trainable(
    model: Transformer, patterns: str | Sequence[str], trainable: bool, caller: str
) -> None:
    """Do the work of `Transformer.freeze` and `Transformer.unfreeze`."""
    names = list(parameter_shapes(model.config))
    several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
    wanted: list[Any] = list(patterns) if several else [patterns]
    for name in _matching(names, wanted, caller):
        model._core.set_trainable(name, trainable)


def _matching(names: Sequence[str], patterns: Sequence[str], caller: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise DTypeError(f"{caller}: patterns must be texts such as 'embed.*', got {pattern!r}")
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            hint = did_you_mean(pattern, names) or "; parameters() lists them"
            raise ConfigError(f"{caller}: no parameter is named {pattern!r}{hint}")
        found += matches
    return found
