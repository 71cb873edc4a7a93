"""Checks of configuration dataclasses that find every problem before raising one `ConfigError`."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from llmcore.errors import ConfigError, DTypeError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Construct a checked dataclass from a mapping, such as one read from JSON or TOML.

    A field that is itself a dataclass may be given as a mapping.

    Args:
        cls: A dataclass whose `__post_init__` uses `Check`.
        values: Field names and values.

    Raises:
        ConfigError: naming every unknown key with the nearest known one, every required key that
            is missing, and every bad value.

    Example:
        >>> from llmcore.config import RopeScaling
        >>> build(RopeScaling, {"type": "linear", "factor": 2}).factor
        2.0
    """
    check_mapping(cls, values)
    hints, values = field_hints(cls), dict(values)
    problems = [
        f"unknown key {key!r}{did_you_mean(str(key), hints)}" for key in values if key not in hints
    ]
    missing = [name for name in _required(cls) if name not in values]
    problems += [f"{name}: required, but missing" for name in missing]
    values = {key: value for key, value in values.items() if key in hints}
    for name, value in values.items():
        inner: Any = _alternatives(hints[name])[0]
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            try:
                values[name] = build(cast(type[Any], inner), value)
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
                values[name] = None
    try:
        result = cls(**dict.fromkeys(missing), **values)
    except ConfigError as error:
        said = tuple(f"{name}: " for name in missing)
        problems += [problem for problem in error.problems if not problem.startswith(said)]
    if problems:
        raise ConfigError.listing(cls.__name__, problems)
    return result


def check_mapping(cls: type, values: Any) -> None:
    """Raise `ConfigError` unless a dataclass could be built from `values`."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{cls.__name__}: expected a mapping of its fields, got a {type(values).__name__}"
        )


def told_at_once(build: Callable[[type[Any], Mapping[str, Any]], Any]) -> Callable[[T], T]:
    """Decorate a dataclass so that its constructor tells unknown and missing names as `build` does.

    Python's own TypeError would name one of them, and nothing else that is wrong.

    Example:
        >>> from dataclasses import dataclass
        >>> @told_at_once(build)
        ... @dataclass(kw_only=True)
        ... class Size:
        ...     width: int
        >>> Size(widht=3)
        Traceback (most recent call last):
        ...
        llmcore.errors.ConfigError: Size has 2 problems:
          unknown key 'widht', did you mean 'width'?
          width: required, but missing
    """

    def decorate(cls: Any) -> Any:
        construct, known, required = cls.__init__, field_hints(cls), set(_required(cls))

        @functools.wraps(construct)
        def checked(self: Any, *args: Any, **values: Any) -> None:
            if not required <= values.keys() <= known.keys():
                build(cls, values)
            construct(self, *args, **values)

        cls.__init__ = checked
        return cls

    return decorate


def as_path(value: Any, what: str) -> str:
    """Return the path of a file or directory as text.

    Raises:
        DTypeError: naming `what`, where `value` is none.

    Example:
        >>> as_path(None, "load: path")
        Traceback (most recent call last):
        ...
        llmcore.errors.DTypeError: load: path must be a path, got a NoneType
    """
    if not isinstance(value, str | os.PathLike):
        raise DTypeError(f"{what} must be a path, got a {type(value).__name__}")
    return os.fsdecode(value)


def check_seed(seed: Any, what: str) -> None:
    """Raise unless `seed` is one: the core's are 64 bits wide.

    Raises:
        ConfigError: naming `what`.

    Example:
        >>> check_seed(1337, "seed")
        >>> check_seed(-1, "seed")
        Traceback (most recent call last):
        ...
        llmcore.errors.ConfigError: seed must be a whole number from 0 to 2**64 - 1, got -1
    """
    if not (isinstance(seed, numbers.Integral) and 0 <= int(seed) < 2**64):
        raise ConfigError(f"{what} must be a whole number from 0 to 2**64 - 1, got {seed!r}")


def first_beyond_32_bits(ids: Any) -> tuple[list[int], int]:
    """Return where in a NumPy array of integers the first is that int32 cannot hold, and which.

    Example:
        >>> import numpy as np
        >>> first_beyond_32_bits(np.array([[1, 2], [3, 2**31]]))
        ([1, 1], 2147483648)
    """
    beyond = (ids >= 2**31) | (ids < -(2**31))
    place = [int(axis[0]) for axis in beyond.nonzero()]
    return place, int(ids[tuple(place)])


class Check:
    """Collects the problems of a frozen dataclass while it is being constructed.

    A field that is known to be bad takes no part in later rules, so one mistake gives one line.
    The type of every field is checked first, against its annotation: bool, int, float, str, a
    Literal, a dataclass, a sequence of numbers or of texts, or one of these and None. Numbers
    become plain Python numbers, sequences tuples.

    Args:
        target: The dataclass instance, inside its `__post_init__`.
        optional: Fields whose None stands for a default that `derive` will fill in.
    """

    def __init__(self, target: Any, optional: Iterable[str] = ()) -> None:
        self.target = target
        self.problems: list[str] = []
        self._bad: set[str] = set()
        self._unset = {name for name in optional if getattr(target, name) is None}
        for name, hint in field_hints(type(target)).items():
            if name not in self._unset:
                value = getattr(target, name)
                expected, converted = _convert(value, hint)
                if expected:
                    self._report(name, expected)
                elif converted is not value:
                    object.__setattr__(target, name, converted)

    def rule(
        self, names: tuple[str, ...], holds: Callable[[], bool], expected: Callable[[], str]
    ) -> None:
        """Blame the first of `names` unless the rule holds; skip it while one of them is bad."""
        if self._ready(names) and not holds():
            self._report(names[0], expected())

    def require(self, name: str, holds: Callable[[Any], bool], expected: str) -> None:
        """Require what `holds` says of the value of one field."""
        self._each((name,), holds, expected)

    def at_least(self, minimum: float, *names: str) -> None:
        """Require numbers no smaller than `minimum`."""
        self._each(names, lambda value: value >= minimum, f"at least {minimum}")

    def positive(self, *names: str) -> None:
        """Require numbers above zero."""
        self._each(names, lambda value: value > 0, "a number above 0")

    def probability(self, *names: str) -> None:
        """Require numbers from 0 up to, but not including, 1."""
        self._each(names, lambda value: 0 <= value < 1, "a probability in [0, 1)")

    def derive(self, name: str, sources: tuple[str, ...], compute: Callable[[], Any]) -> None:
        """Fill a field that was left None; it stays out of the rules if a source is bad."""
        if name in self._unset and self._ready(sources):
            object.__setattr__(self.target, name, compute())
            self._unset.remove(name)

    def done(self) -> None:
        """Raise the one `ConfigError`, if there is a problem."""
        if self.problems:
            raise ConfigError.listing(type(self.target).__name__, self.problems)

    def _ready(self, names: tuple[str, ...]) -> bool:
        return self._bad.isdisjoint(names) and self._unset.isdisjoint(names)

    def _each(self, names: tuple[str, ...], holds: Callable[[Any], bool], expected: str) -> None:
        for name in names:
            if self._ready((name,)) and not holds(getattr(self.target, name)):
                self._report(name, expected)

    def _report(self, name: str, expected: str) -> None:
        self._bad.add(name)
        self.problems.append(f"{name}: expected {expected}, got {getattr(self.target, name)!r}")


@functools.cache
def _field_hints(cls: Any) -> dict[str, Any]:
    return dict(typing.get_type_hints(cls))


def field_hints(cls: type) -> dict[str, Any]:
    """Return the resolved type of every field of a dataclass, by name."""
    return _field_hints(cls)


def _required(cls: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is missing and field.default_factory is missing
    ]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if _is_union(hint) else (hint,)


@functools.cache
def _is_union(hint: Any) -> bool:
    # `bool | Literal["never"]` is not a types.UnionType before Python 3.14.
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _convert(value: Any, hint: Any) -> tuple[str, Any]:
    """Return (what was expected, or "" if `value` fits `hint`; the value as that plain type)."""
    if _is_union(hint):
        tried = [_convert(value, alternative) for alternative in _alternatives(hint)]
        fitting = [converted for expected, converted in tried if not expected]
        if fitting:
            return "", fitting[0]
        return ", or ".join(expected for expected, _ in tried), value
    if hint is type(None):
        return ("" if value is None else "None"), value
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        fits = isinstance(value, str) and value in choices
        return ("" if fits else f"one of {', '.join(map(repr, choices))}"), value
    if typing.get_origin(hint) is Sequence:
        return _convert_items(value, typing.get_args(hint)[0])
    is_bool = isinstance(value, bool)
    if hint is bool:
        return ("" if is_bool else "True or False"), value
    if hint is int:
        fits = isinstance(value, numbers.Integral) and not is_bool
        return ("", int(value)) if fits else ("a whole number", value)
    if hint is float:
        fits = isinstance(value, numbers.Real) and not is_bool and math.isfinite(value)
        return ("", float(value)) if fits else ("a finite number", value)
    return ("" if isinstance(value, hint) else f"a {hint.__name__}"), value


def _convert_items(value: Any, hint: Any) -> tuple[str, Any]:
    """`_convert` for a sequence: a tuple of items of type `hint`, each checked."""
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    items = [_convert(item, hint) for item in value] if listed else []
    if not listed or any(expected for expected, _ in items):
        return f"a list of {'texts' if hint is str else 'whole numbers'}", value
    return "", tuple(converted for _, converted in items)
