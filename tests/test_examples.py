"""The examples in docstrings run as written, and the README's tree tells the truth."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import llmcore

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["llmcore", *(m.name for m in pkgutil.walk_packages(llmcore.__path__, "llmcore."))]


@pytest.mark.cpu("what they print")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_every_name_that_docstrings_mention_exists():
    sources = (ROOT / "python" / "llmcore").rglob("*.py")
    mentioned = {
        name
        for source in sources
        for name in re.findall(r"`(llmcore(?:\.\w+)+)`", source.read_text(encoding="utf-8"))
    }
    assert len(mentioned) > 9
    missing = sorted(name for name in mentioned if not _exists(name))
    assert not missing, f"no such thing: {', '.join(missing)}"


def _exists(name):
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_readme_names_every_module_and_folder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(llmcore/.*?)```", readme, re.DOTALL)
    assert tree, "README.md has no annotated tree"
    named = set(re.findall(r"[\w.\-]+(?=/|\.\w+|\s)", tree.group(1)))
    files = [p for p in (ROOT / "python" / "llmcore").glob("*.py") if p.stem != "__init__"]
    folders = [p for p in (ROOT / "csrc").iterdir() if p.is_dir()]
    missing = [p.stem for p in [*files, *folders] if not any(p.stem in word for word in named)]
    assert not missing, f"README.md's tree does not name {', '.join(sorted(missing))}"
