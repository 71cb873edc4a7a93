"""Declaring the settings of a dataclass, each with help and range, and checking their values."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from llmcore.errors import ConfigError, did_you_mean
from llmcore.validation import check_mapping


def setting(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    resume: str = "free",
    option: str | None = None,
) -> Any:
    """Declare one setting: its default, its one line of help, its range, and what a resume may do.

    ``resume`` says what happens when a resumed run asks for another value than the run it
    continues: "free" (it does not touch the weights), "warn" (the run goes on, but no longer
    equals an uninterrupted one) or "refuse" (the data cursor would mean something else).
    ``option`` is its name on the command line, where that is not its own.
    """
    metadata = {
        "help": help_text,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "resume": resume,
        "option": option,
    }
    return field(default=default, metadata=metadata)


_Config = typing.TypeVar("_Config")


def build_settings(cls: type[_Config], settings: Mapping[str, Any]) -> _Config:
    """Build a dataclass of settings; unknown names are errors that suggest the nearest.

    Raises:
        ConfigError: With every problem found.
    """
    check_mapping(cls, settings)
    names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    problems = unknown_settings(names, settings)
    try:
        built = cls(**{name: value for name, value in settings.items() if name in names})
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError.listing(cls.__name__, problems)
    return built


def unknown_settings(known: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each name that is not among the known ones."""
    return [
        f"unknown setting {name!r}{did_you_mean(name, known)}"
        for name in settings
        if name not in known
    ]


def find_problems(cls: type, settings: Mapping[str, Any]) -> list[str]:
    """Check types and ranges of the settings that are there."""
    hints = typing.get_type_hints(cls)
    found = []
    for item in dataclasses.fields(cls):
        if item.name in settings:
            problem = _problem(settings[item.name], hints[item.name], item.metadata)
            if problem:
                found.append(f"{item.name} must be {problem}")
    return found


def _problem(value: Any, hint: Any, rules: Mapping[str, Any]) -> str:
    """Say what `value` should have been, or nothing if it is right."""
    optional = type(None) in typing.get_args(hint)
    if value is None and optional:
        return ""
    kind = next(t for t in typing.get_args(hint) if t is not type(None)) if optional else hint
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool:
        return "" if isinstance(value, bool) else f"true or false, got {value!r}"
    if kind is str:
        if not isinstance(value, str):
            return f"a string, got {value!r}"
        if not value:
            return "a name, got an empty string"
        if rules["choices"] and value not in rules["choices"]:
            quoted = ", ".join(f'"{choice}"' for choice in rules["choices"])
            return f'one of {quoted}, got "{value}"' + did_you_mean(value, rules["choices"])
        return ""
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            return f"a whole number, got {value!r}"
    elif kind is float:
        if not is_number or not math.isfinite(value):
            return f"a number, got {value!r}"
    elif kind == tuple[str, ...]:
        names = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
        if names and (not rules["choices"] or set(value) <= set(rules["choices"])):
            return ""
        some = f"some of {', '.join(rules['choices'])}" if rules["choices"] else "a list of names"
        return f"{some}, got {value!r}"
    else:  # the only other kind: a pair of numbers
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        if not pair or not all(isinstance(number, (int, float)) for number in value):
            return f"two numbers, got {value!r}"
        return ""
    low, high = rules["minimum"], rules["maximum"]
    if low is not None and value < low:
        return f"at least {low:g}, got {value}"
    if high is not None and value > high:
        return f"at most {high if isinstance(high, int) else f'{high:g}'}, got {value}"
    return ""
