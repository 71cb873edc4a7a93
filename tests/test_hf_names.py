"""Tensors that a foreign file may have or not: ties, old names, and what fine-tuning needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from foreign import T5_1_1, Saved, transformers
from llmcore import checkpoint, hf
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError
from llmcore.parameters import parameter_shapes


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp)


# --- names that may be there or not -------------------------------------------------------------


def rewrite(folder: Path, target: Path, change) -> None:
    """Copy a model, its tensors changed."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    target.mkdir(exist_ok=True)
    for file in folder.glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    safetensors.numpy.save_file(tensors, target / "model.safetensors")


def assert_loads(path: Path, name: str, saved) -> None:
    _, folder = saved(name)
    config = hf.load_config(path)
    expected = dict(hf.load_state(folder, config))
    found = dict(hf.load_state(path, config))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "table", "others"),
    [
        ("marian", "model.shared.weight", ["model.encoder.embed_tokens.weight", "lm_head.weight"]),
        ("bart", "model.shared.weight", ["model.decoder.embed_tokens.weight"]),
        ("t5", "shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
        ("t5", "shared.weight", ["lm_head.weight"]),
        ("bert", "bert.embeddings.word_embeddings.weight", ["cls.predictions.decoder.weight"]),
        ("bert", "cls.predictions.bias", ["cls.predictions.decoder.bias"]),
        ("roberta", "lm_head.bias", ["lm_head.decoder.bias"]),
    ],
)
def test_ties(name, table, others, saved, tmp_path):
    _, folder = saved(name)

    def repeat(tensors) -> None:
        tensors.update(dict.fromkeys(others, tensors[table]))

    def rename(tensors) -> None:
        tensors.update(dict.fromkeys(others, tensors.pop(table)))

    def differ(tensors) -> None:
        tensors.update(dict.fromkeys(others, tensors[table] + 1))

    for change in (repeat, rename):
        rewrite(folder, tmp_path / change.__name__, change)
        assert_loads(tmp_path / change.__name__, name, saved)
    rewrite(folder, tmp_path / "differ", differ)
    with pytest.raises(CheckpointError, match=f"{others[0]} differs from {table}, but "):
        hf.load_state(tmp_path / "differ", hf.load_config(tmp_path / "differ"))


def test_old_bert_files(saved, tmp_path):
    """As google's were converted: other names of norms, a pooler, one more head, an index."""

    def age(tensors) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = np.zeros((12, 12), np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros(12, np.float32)
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 12), np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(11)[None]

    _, folder = saved("bert")
    rewrite(folder, tmp_path, age)
    assert_loads(tmp_path, "bert", saved)
    edit(tmp_path / "config.json", architectures=["BertForPreTraining"])
    assert_loads(tmp_path, "bert", saved)


def test_sinusoidal_tables_in_a_file_are_ignored(saved, tmp_path):
    def add(tensors) -> None:
        for stack in ("encoder", "decoder"):
            tensors[f"model.{stack}.embed_positions.weight"] = np.zeros((11, 12), np.float32)

    rewrite(saved("marian")[1], tmp_path, add)
    assert_loads(tmp_path, "marian", saved)


def test_t5_head_that_transformers_5_left_out(saved, tmp_path):
    """A model it builds ties its head in any case, and says neither in its config nor its file."""
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_1_1))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in safetensors.numpy.load_file(tmp_path / "model.safetensors")
    config = hf.load_config(tmp_path)
    assert not config.tie_embeddings
    assert config.head_scale == 1.0
    state = dict(hf.load_state(tmp_path, config))
    assert np.array_equal(state["head.weight"], state["embed.tokens.weight"])


def test_missing_names_are_told(saved, tmp_path):
    def take(tensors) -> None:
        del tensors["model.shared.weight"]
        tensors["model.encoder.layers.0.fc3.weight"] = tensors.pop(
            "model.encoder.layers.0.fc1.weight"
        )
        tensors["final_logits_bias"] = tensors["final_logits_bias"][0]

    rewrite(saved("bart")[1], tmp_path, take)
    with pytest.raises(CheckpointError) as caught:
        hf.load_state(tmp_path, hf.load_config(tmp_path))
    message = str(caught.value)
    assert "2 missing: model.shared.weight, model.encoder.layers.0.fc1.weight; " in message
    assert "1 unexpected: model.encoder.layers.0.fc3.weight; " in message
    assert "1 misshapen: final_logits_bias (expected [1, 31], got [31])" in message


# --- fine-tuning --------------------------------------------------------------------------------


CLASSIFIER = {"num_labels": 3, "pooler": True, "head_bias": False, "head_transform": False}
FRESH = {"classifier.weight", "classifier.bias"}
POOLER = {"pooler.weight", "pooler.bias"}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("bert", FRESH | POOLER),
        ("bert-base", FRESH),
        ("bert-classifier", set()),
        ("roberta", FRESH | POOLER),
        ("roberta-base", FRESH),
    ],
)
def test_a_classifier_from_another_model(name, absent, saved):
    _, folder = saved(name)
    config = hf.load_config(folder).replace(**CLASSIFIER)
    options = {"fresh": ["classifier.*", "pooler.*"], "drop": ["head.*"]}
    state = dict(hf.load_state(folder, config, **options))
    assert parameter_shapes(config).keys() - state.keys() == absent
    original = dict(hf.load_state(folder, hf.load_config(folder)))
    assert all(np.array_equal(state[key], original[key]) for key in state)
    loaded = checkpoint.load(folder, config=config, **options)
    assert dict(loaded.parameters).keys() == state.keys()


def test_fresh_and_dropped_names_are_named(saved):
    _, folder = saved("bert")
    config = hf.load_config(folder).replace(**CLASSIFIER)
    with pytest.raises(CheckpointError) as caught:
        hf.load_state(folder, config)
    message = str(caught.value)
    assert (
        "4 missing: bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.weight" in message
    )
    assert "4 unexpected: cls.predictions.transform." in message
    with pytest.raises(CheckpointError, match=r"2 missing: bert\.pooler"):
        hf.load_state(folder, config, fresh=["classifier.*"], drop=["head.*"])


def test_another_number_of_labels(saved):
    _, folder = saved("bert-classifier")
    config = hf.load_config(folder).replace(num_labels=7)
    with pytest.raises(CheckpointError, match=r"classifier.bias \(expected \[7\], got \[3\]\)"):
        hf.load_state(folder, config)
    state = dict(hf.load_state(folder, config, fresh=["classifier.*"], drop=["classifier.*"]))
    assert parameter_shapes(config).keys() - state.keys() == FRESH


def test_adapters_are_fresh(saved):
    _, folder = saved("qwen3")
    config = ModelConfig.from_dict({**hf.load_config(folder).to_dict(), "lora": {"rank": 2}})
    state = dict(hf.load_state(folder, config, fresh=["*.lora_?"]))
    adapters = {name for name in parameter_shapes(config) if ".lora_" in name}
    assert parameter_shapes(config).keys() - state.keys() == adapters
    assert len(adapters) == 8
    with pytest.raises(
        CheckpointError, match=r"8 missing: decoder\.layers\.0\.self_attention\.q\.lora_a"
    ):
        hf.load_state(folder, config)
