"""The machine: doctor."""

from __future__ import annotations

import json

from llmcore.cli.common import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine and installation offer, and why something is not there.

    [bold]Example[/bold]

    llmcore doctor --json
    """
    from llmcore.doctor import examine, report

    facts = examine()
    print(json.dumps(facts, indent=2) if as_json else report(facts))
