"""What a foreign architecture is: rows that map keys and tensors, and what walks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.config import ModelConfig
from llmcore.errors import ConfigError
from llmcore.families.special_ids import decode_ids, encode_ids
from llmcore.parameters import parameter_shapes
from llmcore.safetensors_io import Array, Shape

Float32 = NDArray[np.float32]

# Fields that do not change what a model computes: configs that differ only here are the same
# architecture.
_IMMATERIAL_FIELDS = (
    "decoder_start_id",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "ffn_dropout",
    "init_std",
)


@dataclass(frozen=True)
class Key:
    """A field of ours and the foreign config key that holds it.

    Attributes:
        ours: Field of `ModelConfig`.
        theirs: Key in config.json.
        default: Their value when the key is absent.
        decode: Their value to ours.
        encode: Our value to theirs.
    """

    ours: str
    theirs: str
    default: Any = None
    decode: Callable[[Any], Any] = lambda value: value
    encode: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Rule:
    """Fields of ours and foreign config keys that do not correspond one to one.

    Attributes:
        keys: The keys, as errors name them.
        decode: Config.json, and our fields so far, to more of our fields.
        encode: Our config to their keys.
    """

    keys: str
    decode: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
    encode: Callable[[ModelConfig], Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """Tensors of ours and the one foreign tensor that holds them.

    Attributes:
        ours: Our names; several are stacked along their first axis in the foreign tensor.
        theirs: The foreign name. `{i}` stands for the layer's index in both.
        aliases: Other foreign names of the same tensor. A file may have any of them, equal bit for
            bit where it has several.
        transposed: Whether the foreign matrix is [in, out], as in GPT-2's Conv1D.
        batched: Whether the foreign tensor has a first axis of length 1 that ours lacks.
        optional: Whether a file may lack the tensor, which is zero then.
        otherwise: The foreign name that is read where a file lacks all the others.
        when: Whether the row belongs to the model a config describes.
    """

    ours: tuple[str, ...]
    theirs: str
    aliases: tuple[str, ...] = ()
    transposed: bool = False
    batched: bool = False
    optional: bool = False
    otherwise: str = ""
    when: Callable[[ModelConfig], bool] = lambda config: True

    @property
    def names(self) -> tuple[str, ...]:
        """Every foreign name of the tensor."""
        return (self.theirs, *self.aliases)

    def at(self, layer: int | str) -> Row:
        """Return the row of one layer."""
        ours, names = (
            tuple(name.replace("{i}", str(layer)) for name in names)
            for names in (self.ours, self.names)
        )
        return replace(self, ours=ours, theirs=names[0], aliases=names[1:])

    @property
    def upright(self) -> Row:
        """The row of a foreign tensor that is [out, in] in any case, as quantised ones are."""
        return replace(self, transposed=False)

    def foreign_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the shape of the foreign tensor, from the shapes of ours."""
        first = shapes[self.ours[0]]
        stacked = (sum(shapes[name][0] for name in self.ours), *first[1:])
        if self.batched:
            return (1, *stacked)
        return stacked[::-1] if self.transposed else stacked

    def split(self, foreign: Any, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Any]]:
        """Yield (our name, view of the foreign tensor), which is an array or can be cut as one."""
        stacked = foreign[0] if self.batched else foreign.T if self.transposed else foreign
        start = 0
        for name in self.ours:
            end = start + shapes[name][0]
            yield name, stacked[start:end]
            start = end

    def join(self, tensors: Mapping[str, Array], shapes: Mapping[str, Shape]) -> Array:
        """Build the foreign tensor from ours; one we do not have is zero."""
        parts = [
            np.asarray(tensors[name]) if name in tensors else np.zeros(shapes[name], np.float32)
            for name in self.ours
        ]
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.batched:
            return stacked[np.newaxis]
        return stacked.T if self.transposed else stacked


def linear(ours: str, theirs: str, transposed: bool = False) -> tuple[Row, Row]:
    """Return the rows of a weight and of the bias beside it.

    Args:
        ours: Our names without their ending; several, separated by commas, are stacked.
        theirs: The foreign name without its ending.
        transposed: Whether the foreign weight is [in, out].
    """
    names = ours.split(",")
    weights, biases = (tuple(f"{n}.{kind}" for n in names) for kind in ("weight", "bias"))
    return Row(weights, f"{theirs}.weight", transposed=transposed), Row(biases, f"{theirs}.bias")


def changed(keys: tuple[Key, ...], *changes: Key, without: tuple[str, ...] = ()) -> tuple[Key, ...]:
    """Return a family's keys with some replaced, added or taken away, by our name."""
    kept = {key.ours: key for key in (*keys, *changes)}
    return tuple(key for key in kept.values() if key.ours not in without)


@dataclass(frozen=True)
class Family:
    """One foreign architecture, as tables.

    Attributes:
        architecture: The class name under `architectures` in config.json.
        model_type: The name under `model_type`.
        fixed: Our fields that every model of the family has in common.
        keys: Our fields that config.json holds.
        rows: Tensor names.
        base_prefix: Prefix of every name but the head's, absent from files of the bare base model.
        also: Other class names, whose files hold the same tensors or all but some of the head's.
        special_ids: Our fields of special ids for which transformers has a default, and that.
        rules: Whatever `keys` cannot say.
        ignored: Pattern of foreign names that hold no parameters of ours.
        renames: Patterns of names that older files have, and what replaces them.
        refused: Keys for which only the value given here is supported.
        zero_filled: Biases of the family that a model of ours may lack; they are written as zeros
            and must be zeros when such a model is read again.
        bare: Whether files are written without the prefix.
        copies: Whether a file of a model with an untied head has a tensor under each of its names.
        accepts: What transformers demands of a config beyond the keys.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    base_prefix: str
    also: tuple[str, ...] = ()
    special_ids: Mapping[str, int | None] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    ignored: str = r"(?!)"
    renames: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    zero_filled: tuple[str, ...] = ()
    bare: bool = False
    copies: bool = False
    accepts: Callable[[ModelConfig], bool] = lambda config: True

    def decode(
        self, values: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Build our config from the family's keys.

        Args:
            values: The contents of config.json.
            generation: Those of generation_config.json, whose special ids win.
        """
        for name, expected in self.refused.items():
            if values.get(name, expected) != expected:
                raise ConfigError(
                    f"{self.architecture}: {name}: only {expected!r} is supported, "
                    f"got {values[name]!r}"
                )
        fields = dict(self.fixed)
        for key in self.keys:
            fields[key.ours] = key.decode(values.get(key.theirs, key.default))
        for rule in self.rules:
            try:
                fields |= rule.decode(values, fields)
            except ConfigError:
                raise
            except (TypeError, ValueError, ArithmeticError) as error:
                raise ConfigError(f"{self.architecture}: {rule.keys}: {error}") from error
        fields |= decode_ids({**values, **(generation or {})}, self.special_ids, fields)
        return ModelConfig.from_dict(fields)

    def encode(self, config: ModelConfig) -> dict[str, Any] | None:
        """Write our config with the family's keys, or return None if they cannot express it.

        The family can express what decodes to the same: there is no list of conditions to keep.
        """
        if not self.accepts(config):
            return None
        values: dict[str, Any] = {"architectures": [self.architecture]}
        values["model_type"] = self.model_type
        for key in self.keys:
            values[key.theirs] = key.encode(getattr(config, key.ours))
        for rule in self.rules:
            values |= rule.encode(config)
        values |= encode_ids(config, self.special_ids)
        try:
            same = _essence(self.decode(values)) == _essence(self.widen(config))
        except ConfigError:
            return None
        return values if same else None

    def widen(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with the biases that the family's files have in any case."""
        absent = [name for name in self.zero_filled if not getattr(config, name)]
        return config.replace(**dict.fromkeys(absent, True)) if absent else config

    def layout(self, config: ModelConfig) -> list[Row]:
        """List the rows of the model `config` describes, one for each foreign tensor.

        With a tied head, the names of the head are aliases of the token table.
        """
        shapes = parameter_shapes(self.widen(config))
        rows = []
        for row in self.rows:
            if not row.when(config):
                continue
            if config.tie_embeddings and row.ours == ("embed.tokens.weight",):
                head = [name for row in self.rows if row.ours == _HEAD for name in row.names]
                row = replace(row, aliases=(*row.aliases, *head))
            layers = range(config.num_encoder_layers + config.num_decoder_layers)
            at_layers = map(row.at, layers if "{i}" in row.theirs else (0,))
            rows += [row for row in at_layers if row.ours[0] in shapes]
        return rows

    def our_names(self, foreign: str) -> tuple[str, ...]:
        """Return our names for a foreign tensor of any model of the family; none if unknown."""
        for row in self.rows:
            for name in row.names:
                match = re.fullmatch(re.escape(name).replace(r"\{i\}", r"(\d+)"), foreign)
                if match:
                    return row.at(match[1]).ours if match.groups() else row.ours
        return ()


_HEAD = ("head.weight",)


def _essence(config: ModelConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {key: value for key, value in values.items() if key not in _IMMATERIAL_FIELDS}


class OwnFamily(Family):
    """The layout of last resort: our config and our names, which only llmcore reads."""

    def decode(
        self, values: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read our config, which holds the special ids too."""
        ours = values.get("llmcore")
        if not isinstance(ours, dict):
            raise ConfigError(f"{self.architecture}: the key 'llmcore', an object, is missing")
        return ModelConfig.from_dict(ours)

    def encode(self, config: ModelConfig) -> dict[str, Any]:
        """Write our config, whatever it is."""
        values = {"architectures": [self.architecture], "model_type": self.model_type}
        return {**values, "llmcore": config.to_dict()}

    def layout(self, config: ModelConfig) -> list[Row]:
        """List our names as they are; a tied head may be repeated."""
        tied = ("head.weight",) if config.tie_embeddings else ()
        return [
            Row((name,), name, tied if name == "embed.tokens.weight" else ())
            for name in parameter_shapes(config)
        ]

    def our_names(self, foreign: str) -> tuple[str, ...]:
        """Return the name: it is ours already."""
        return (foreign,)
