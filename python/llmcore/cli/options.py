"""Command line options made from the fields of the settings classes: one place per decision."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import typer

Command = Callable[..., Any]


def options_from(**panels: type) -> Callable[[Command], Command]:
    """Replace the ``**settings`` of a command by one option per field of the settings classes.

    An option that is not given arrives as None, so that the command can tell "not given" from
    "given the default"; `given` sorts them out. The help is the field's own, with its default.

    Args:
        **panels: heading in ``--help`` = dataclass whose fields have "help" in their metadata.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        hidden = signature.parameters.keys() - {p.name for p in parameters}
        for panel, cls in panels.items():
            hints = typing.get_type_hints(cls)
            for item in dataclasses.fields(cls):
                parameters.append(_parameter(item, hints[item.name], panel))
        # typer reads names and types from here; a type checker knows no attributes of functions.
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ |= {p.name: p.annotation for p in parameters}
        for name in hidden:
            del command.__annotations__[name]
        return command

    return decorate


def given(options: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Pick from parsed options the settings of `cls` that were given on the command line."""
    names = {item.name: option_name(item) for item in dataclasses.fields(cls)}
    # A list that is not given arrives as None or empty.
    return {
        field: options[option]
        for field, option in names.items()
        if options.get(option) not in (None, [])
    }


def option_name(item: dataclasses.Field[Any]) -> str:
    """The parameter that a field becomes; ``--`` and dashes make it the option."""
    return str(item.metadata["option"] or item.name)


def _parameter(item: dataclasses.Field[Any], hint: Any, panel: str) -> inspect.Parameter:
    name = option_name(item)
    option = typer.Option(
        "--" + name.replace("_", "-"),
        help=item.metadata["help"] + _default_note(item.default),
        rich_help_panel=panel,
        show_default=False,
    )
    kind: Any = _plain(hint) | None
    annotation: Any = typing.Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _plain(hint: Any) -> Any:
    """The type without None; several words are a list to typer."""
    if hint == tuple[str, ...]:
        return list[str]
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def _default_note(default: Any) -> str:
    if default is None or default is False or default == ():
        return ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f" Default: {shown}."
