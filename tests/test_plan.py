"""Estimates of memory and time, the settings they come from, and the doctor's report."""

from __future__ import annotations

import dataclasses

import pytest

from llmcore import doctor
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import ConfigError
from llmcore.training import plan
from llmcore.training.train_config import (
    DataConfig,
    RunConfig,
    TrainConfig,
    merge,
    parse_overrides,
    resume_changes,
)

GPT2 = ModelConfig.preset("gpt2")


def test_adapters_need_no_moments_for_what_is_frozen():
    model = ModelConfig.preset("gpt2", lora=LoraConfig(rank=8))
    cost = plan.make_plan(model, TrainConfig(), peak_flops=1e12)
    # Two targets a layer, r (in + out) each.
    assert cost.optimizer_bytes == 3 * 4 * 12 * 2 * 8 * (768 + 768)
    assert cost.weight_bytes > 100 * cost.optimizer_bytes / 3


def test_plan_adds_up():
    train = TrainConfig(steps=10, batch_size=4, block_size=64, accumulation=3)
    cost = plan.make_plan(GPT2, train, peak_flops=1e11)
    assert cost.weight_bytes == 4 * 124439808
    assert cost.optimizer_bytes == 3 * cost.weight_bytes
    assert cost.checkpoint_bytes == 3 * cost.weight_bytes
    assert cost.tokens_per_step == 4 * 64 * 3
    assert cost.flops_per_step == pytest.approx(GPT2.flops_per_token(64) * 768)
    parts = cost.weight_bytes + cost.optimizer_bytes + cost.activation_bytes
    assert cost.memory_bytes == parts
    assert cost.seconds == pytest.approx(10 * cost.flops_per_step / (plan.ASSUMED_SHARE * 1e11))
    assert "124,439,808" in "\n".join(cost.describe())


def activations(model=GPT2, **settings):
    return plan.make_plan(model, TrainConfig(**settings), peak_flops=1.0).activation_bytes


def test_activations_grow_with_the_micro_batch_alone():
    one = activations(batch_size=8, block_size=64)
    assert activations(batch_size=8, block_size=64, accumulation=9) == one
    assert activations(batch_size=4, block_size=128) == one
    assert 1.8 * one < activations(batch_size=16, block_size=64) <= 2 * one
    assert activations(batch_size=8, block_size=64, recompute=True) < one / 3


def test_activations_count_what_a_block_keeps():
    """GPT-2's block, by hand: x, norm(x), qkv, heads' output; x, norm(x), before and after gelu."""
    C, F, H, T = 768, 3072, 12, 64
    block = 2 * C + 3 * C + C + H + 2 + 2 * C + 2 + 2 * F
    working = 4 * C + 2 * F
    expected = 4 * (T * (12 * block + working) + 2 * T * 50257)
    assert activations(batch_size=1, block_size=T) == expected


def test_shortages_are_told_with_a_cure(tmp_path, monkeypatch):
    cost = plan.make_plan(GPT2, TrainConfig(), peak_flops=1.0)
    assert plan.find_shortages(dataclasses.replace(cost, checkpoint_bytes=1), tmp_path) == []
    monkeypatch.setattr(plan, "available_memory", lambda: 10**6)
    low = plan.find_shortages(dataclasses.replace(cost, checkpoint_bytes=10**18), tmp_path)
    assert len(low) == 2
    assert "lower batch_size" in low[0]
    assert "while it is replaced" in low[1]


def test_available_memory_is_plausible():
    free = plan.available_memory()
    assert free is None or 2**20 < free < 2**50


# ----------------------------------------------------------------------------- settings


def test_settings_survive_a_round_trip_through_toml_and_json(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        '[model]\nname = "gpt2"\nnum_heads = 6\n[data]\npath = "a.txt"\n'
        "[train]\nlr = 3e-4\nbetas = [0.9, 0.95]\nsteps = 50\nresume = true\n"
    )
    run = RunConfig.from_toml(file)
    assert run.model == {"name": "gpt2", "num_heads": 6}
    assert run.data.path == "a.txt"
    assert run.train.betas == (0.9, 0.95)
    assert run.train.min_lr == 3e-5
    assert run.train.warmup_steps == 5
    assert RunConfig.from_dict(run.to_dict()) == run
    assert TrainConfig.from_toml(file).lr == run.train.lr


def test_defaults_are_nanogpts_cpu_preset_at_twice_its_rate():
    train = TrainConfig()
    assert (train.steps, train.batch_size, train.block_size) == (2000, 12, 64)
    assert (train.lr, train.min_lr, train.warmup_steps) == (2e-3, 2e-4, 100)
    assert (train.betas, train.weight_decay, train.max_grad_norm) == ((0.9, 0.99), 0.1, 1.0)
    assert (train.eval_interval, train.eval_batches, train.accumulation) == (250, 20, 1)
    assert RunConfig().model == {"name": "gpt-nano"}
    assert DataConfig().validation_fraction == 0.1


def test_all_problems_are_told_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(
            {
                "train": {"lrr": 1, "steps": 0, "betas": 3, "resume": "yes", "schedule": "cos"},
                "data": {"validation_fraction": 2.0, "path": 3},
                "modle": {},
            }
        )
    message = str(caught.value)
    for words in (
        "[modle], did you mean 'model'?",
        "unknown setting 'lrr', did you mean 'lr'?",
        "steps must be at least 1, got 0",
        "betas must be two numbers, got 3",
        "resume must be true or false, got 'yes'",
        "schedule must be one of",
        "validation_fraction must be at most 0.9, got 2",
        "path must be a string, got 3",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 2.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"lr": 0.0}, "lr: expected a positive number"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "min_lr"),
        ({"steps": 5, "warmup_steps": 6}, "warmup_steps"),
        ({"betas": (0.9, 1.0)}, "betas must both lie in"),
        ({"schedule": "linear", "decay_steps": 5}, "decay_steps"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("content", "words"), [(b"[train\n", "not valid TOML"), (b"\xff\xfe", "not a text file")]
)
def test_broken_toml_is_named(tmp_path, content, words):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_toml(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        RunConfig.from_toml(tmp_path)
    with pytest.raises(ConfigError, match="no configuration file"):
        RunConfig.from_toml(tmp_path / "y.toml")


def test_overrides_and_merging():
    changes = parse_overrides(["train.lr = 1e-3", "model.norm=rms", "train.betas=[0.9, 0.9]"])
    assert changes == {"train": {"lr": 1e-3, "betas": [0.9, 0.9]}, "model": {"norm": "rms"}}
    assert merge({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}) == {"a": {"x": 1, "y": 2}, "b": 3}
    for wrong in ("lr=3", "train.lr", "=3", ".lr=3"):
        with pytest.raises(ConfigError, match="SECTION"):
            parse_overrides([wrong])


def test_every_setting_says_what_a_resume_may_do():
    base = TrainConfig()
    warn, refuse = resume_changes(base, base.replace(lr=3e-3, batch_size=3, threads=5))
    assert [w.split()[0] for w in warn] == ["lr"]
    assert refuse == ["batch_size from 12 to 3"]
    for cls in (TrainConfig, DataConfig):
        for item in dataclasses.fields(cls):
            assert item.metadata["resume"] in ("free", "warn", "refuse")
            assert item.metadata["help"].endswith(".")


# ----------------------------------------------------------------------------- doctor

MACHINE = {
    "cpu_model": "A CPU",
    "isa_available": ["generic", "avx2"],
    "isa_chosen": "avx2",
    "isa_has_dot": False,
    "num_threads": 4,
    "logical_cores": 8,
    "affinity_cores": 8,
    "physical_cores": 4,
    "quota_cores": 0.0,
    "memory_bytes": 2**34,
    "cuda": {"available": False, "reason": "this build has no CUDA"},
}


def test_doctor_sees_nothing_wrong_where_nothing_is():
    assert doctor.find_problems(MACHINE, "madvise") == []


@pytest.mark.parametrize(
    ("change", "pages", "words"),
    [
        ({"isa_chosen": "generic"}, "always", "unset LLMCORE_CPU_ISA"),
        ({"isa_chosen": "generic", "isa_available": ["generic"]}, "always", "no vector kernels"),
        ({"quota_cores": 1.5}, "always", "LLMCORE_NUM_THREADS=1"),
        ({}, "never", "huge pages are off"),
    ],
)
def test_doctor_names_the_cure(change, pages, words):
    assert any(words in problem for problem in doctor.find_problems({**MACHINE, **change}, pages))


def test_doctor_report_shows_every_fact():
    facts = {
        "versions": dict.fromkeys(
            ("llmcore", "python", "numpy", "tokenizers", "rich", "typer", "system"), "9.9"
        ),
        "extras": {"tensorboard": None, "pyarrow": "1.2"},
        "machine": {**MACHINE, "quota_cores": 2.5},
        "memory_available_bytes": None,
        "huge_pages": "madvise",
        "problems": ["something"],
    }
    text = doctor.report(facts)
    for words in ("A CPU", "avx2", "4 physical", "quota: 2.5", "16.0 GiB", "madvise", "no CUDA",
                  "numpy 9.9", "pyarrow", "not installed", "something"):  # fmt: skip
        assert words in text
