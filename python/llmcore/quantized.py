"""Matrices kept in bfloat16, int8 or int4 for inference: in a model, and in safetensors files.

A file has the same names as for float32. A matrix [N, K] is stored, always as [out, in]:

    bfloat16   BF16 [N, K], in the orientation of the family; vectors stay F32
    int8       I8 [N, K], from -127 to 127, with F32 [N] under its name plus ".scale"
    int4       U8 [N, ceil(K / 2)], two codes + 8 a byte, the later one in the upper half, with
               BF16 [N, ceil(K / 32)] under its name plus ".scale", one for every 32 along K

A weight is its code times its scale. What a model was rounded to stands in config.json, under
"quantization": {"format": "int8"}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from llmcore import _core
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError, ConfigError
from llmcore.parameters import parameter_shapes
from llmcore.safetensors_io import Array, SafetensorsFile, Shape, Source, widened

#: Bits that a weight takes in each format; int4 with a scale of 16 bits for every 32 weights.
WEIGHT_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.5}

_GROUP = 32
_SCALE = ".scale"
# The dtypes of codes and scales in files.
_STORED = {"int8": ("I8", "F32"), "int4": ("U8", "BF16")}
# Both codes of a byte, as two bytes: one look-up unpacks a pair.
_PAIRS = np.array([[i % 16 - 8, i // 16 - 8] for i in range(256)], np.int8).view(np.uint16)[:, 0]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix [N, K] as integers and scales, which NumPy takes for the float32 it stands for.

    Attributes:
        codes: As files hold them: [N, K] int8, or [N, ceil(K / 2)] uint8.
        scales: Beside int8 [N] float32, else [N, ceil(K / 32)], the bits of bfloat16 in uint16.
        depth: K.
        origin: What errors name, such as its file.

    Example:
        >>> matrix = Quantized(np.array([[1, -2]], np.int8), np.array([0.5], np.float32), 2)
        >>> matrix.format, np.asarray(matrix).tolist()
        ('int8', [[0.5, -1.0]])
    """

    codes: Array
    scales: Array
    depth: int
    origin: str = "a matrix"

    @property
    def format(self) -> str:
        """One of "int8" and "int4"."""
        return "int8" if self.codes.dtype == np.int8 else "int4"

    def __getitem__(self, rows: slice) -> Quantized:
        return replace(self, codes=self.codes[rows], scales=self.scales[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.format == "int8":
            if self.codes.size and self.codes.min() < -127:
                raise CheckpointError(
                    f"{self.origin}: codes must be from -127 to 127, got {self.codes.min()}"
                )
            return np.asarray(self.codes * self.scales[:, np.newaxis], dtype)
        codes = _PAIRS[self.codes].view(np.int8)[:, : self.depth]
        scales = np.repeat(widened(self.scales), _GROUP, axis=1)[:, : self.depth]
        return np.asarray(codes * scales, dtype)


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed matrix of a model, which is unpacked when its turn to be written comes.

    Attributes:
        core: The model it belongs to.
        name: Of the parameter.
        shape: [N, K].
    """

    core: Any
    name: str
    shape: Shape

    @property
    def format(self) -> str:
        """One of "bfloat16", "int8" and "int4"."""
        return str(self.core.format)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.core.unpack(self.name).numpy(), dtype)

    def stored(self) -> tuple[Array, Array]:
        """The integers and scales, as files hold them."""
        codes, scales = self.core.stored(self.name)
        return codes, scales


def core_on(device: str, core: Any, config: ModelConfig) -> Any:
    """Give a core of the same weights on `device`: itself where it is there."""
    there = _core.empty([0], device=device).device
    if core.device == there:
        return core
    other = _core.Transformer(config.to_dict(), there, None)
    other.take_weights(core)
    return other


def parameters_of(core: Any, config: ModelConfig) -> dict[str, Any]:
    """Every parameter of a model, as views of the CPU's memory or as `Packed` matrices."""
    core = core_on("cpu", core, config)
    views = {name: tensor.numpy() for name, tensor in core.parameters().items()}
    shapes = parameter_shapes(config)
    return views | {name: Packed(core, name, shapes[name]) for name in core.packed_names()}


def fill(core: Any, parameters: Iterable[tuple[str, Any]]) -> None:
    """Set the parameters of a model on the CPU whose matrices are packed, one after the other.

    Args:
        core: The model.
        parameters: Pairs of a name and an array, as `widened` takes it, or a `Quantized` matrix.
            What is in the model's own format is taken over as it is, all else is rounded.

    Raises:
        CheckpointError: A code is out of range.
    """
    views, packed = core.parameters(), set(core.packed_names())
    for name, value in parameters:
        if isinstance(value, Quantized) and value.format == core.format:
            try:
                core.set_stored(name, value.codes, value.scales)
            except ConfigError as error:
                raise CheckpointError(f"{value.origin}: {error}") from error
            continue
        array = np.asarray(value)
        if name not in packed:
            np.copyto(views[name].numpy(), widened(array))
        elif core.format == "bfloat16" and array.dtype == np.uint16:
            core.set_stored(name, array)
        else:
            core.set_packed(name, _float32(array))


def _float32(array: Array) -> _core.Tensor:
    """The array itself where it can be shared, else widened and upright."""
    if array.dtype == np.float32 and array.flags.c_contiguous:
        return _core.as_tensor(array).to(device="cpu")
    target = _core.empty(list(array.shape), device="cpu")
    _core.widen([array], [target])
    return target


def stored_format(values: Mapping[str, Any]) -> str:
    """Read what the matrices beside a config.json are rounded to, "float32" if to nothing.

    Raises:
        ConfigError: The key holds something else than one of our formats.

    Example:
        >>> stored_format({"quantization": {"format": "int4"}})
        'int4'
    """
    found = values.get("quantization")
    if found is None:
        return "float32"
    name = found.get("format") if isinstance(found, dict) else found
    known = [name for name in WEIGHT_BITS if name != "float32"]
    if name not in known:
        raise ConfigError(f"quantization: format must be one of {', '.join(known)}, got {name!r}")
    return str(name)


def config_keys(format: str) -> dict[str, Any]:
    """Return what a config.json says beside the architecture, for us and for transformers.

    It reads our bfloat16. Integers it would take for weights, so it is told of a kind of model that
    it does not know.
    """
    if format == "float32":
        return {}
    theirs = {"model_type": "llmcore"}
    if format == "bfloat16":
        theirs = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    return {**theirs, "quantization": {"format": format}}


def is_stored(file: SafetensorsFile, name: str) -> bool:
    """Whether a tensor holds integers, codes if anything."""
    return file.entries[name].dtype in ("I8", "U8")


def is_scale(file: SafetensorsFile, name: str) -> bool:
    """Whether a tensor is the scale of another one in the file."""
    of = name.removesuffix(_SCALE)
    return of != name and of in file.entries and is_stored(file, of)


def misfits(file: SafetensorsFile, name: str, shape: Shape, format: str) -> Iterator[str]:
    """Yield what is wrong with the matrix `name` [N, K] of a file and its scale, in a few words."""
    if format not in _STORED:
        yield f"{name} (of dtype {file.entries[name].dtype}, with no int8 or int4 in config.json)"
        return
    parts = zip((name, name + _SCALE), _stored_shapes(format, shape), _STORED[format], strict=True)
    for part, wanted, dtype in parts:
        if part not in file.entries:
            yield f"{part} (missing)"
            continue
        entry = file.entries[part]
        if (entry.dtype, entry.shape) != (dtype, wanted):
            yield f"{part} (expected {dtype} {list(wanted)}, got {entry.dtype} {list(entry.shape)})"


def read(file: SafetensorsFile, name: str, depth: int) -> Quantized:
    """Read a matrix [N, depth] that has no `misfits`; nothing is copied."""
    return Quantized(file.raw(name), file.raw(name + _SCALE), depth, f"{file.path}: {name}")


def sources(name: str, parts: Sequence[Packed]) -> list[Source]:
    """What to write of quantised matrices that are stacked in one tensor."""
    format = parts[0].format
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    return [
        Source(name + suffix, stored, partial(_stacked, parts, index), dtype)
        for index, (suffix, stored, dtype) in enumerate(
            zip(("", _SCALE), _stored_shapes(format, shape), _STORED[format], strict=True)
        )
    ]


def _stacked(parts: Sequence[Packed], index: int) -> Array:
    return np.concatenate([part.stored()[index] for part in parts])


def bfloat16_bits(values: Array) -> Array:
    """The upper halves of float32 numbers that are bfloat16 already."""
    bits: Array = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
    return bits.astype(np.uint16)


def _stored_shapes(format: str, shape: Shape) -> tuple[Shape, Shape]:
    outputs, depth = shape
    if format == "int8":
        return shape, (outputs,)
    return (outputs, -(-depth // 2)), (outputs, -(-depth // _GROUP))
