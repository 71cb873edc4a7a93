"""Every recipe in examples/ runs as written; with few steps, but it learns and leaves its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore import Transformer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

# Words for a short run, and the models it leaves; "DATA" stands for the shared Multi30k.
RECIPES = {
    "char_gpt": ([], ["best"]),
    "bpe_gpt": ([], ["best"]),
    "code_model": (["--modules", 20], ["."]),
    "bert": (["--data", "DATA"], ["masked/best", "language/best"]),
    "translation": (["--data", "DATA", "--sentences", 2], ["best"]),
    "joint": ([], ["best"]),
    "lora": ([], ["base/best", "merged"]),
    "attention_pictures": ([], ["best"]),
    "questions": ([], ["best"]),
    "instructions": ([], ["best"]),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, tmp_path, request):
    words, models = RECIPES[name]
    if "DATA" in words:
        data = request.getfixturevalue("shared_data") / "multi30k"
        words = [data if word == "DATA" else word for word in words]
    command = [sys.executable, EXAMPLES / f"{name}.py", "--steps", 8, "--out", tmp_path, *words]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for model in models:
        loaded = Transformer.from_pretrained(tmp_path / model)
        assert loaded.tokenizer is not None
    for file in tmp_path.rglob("metrics.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        losses = [record["val_loss"] for record in records if "val_loss" in record]
        assert losses[-1] < losses[0], file
    if name == "code_model":
        losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if "loss" in line]
        assert losses[-1] < losses[0]
    if name == "attention_pictures":
        assert "cross" in (tmp_path / "attention.html").read_text()


def test_every_recipe_is_tested_short_and_listed():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert file.stem in RECIPES
        assert file.name in listed
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 100, file
        assert any(f"python examples/{file.name}" in line for line in lines[:12])
