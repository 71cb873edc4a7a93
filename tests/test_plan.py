"""Estimates of memory and time, the settings they come from, and the doctor's report."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

import llmcore
from llmcore import doctor
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import ConfigError, OutOfMemory
from llmcore.training import plan
from llmcore.training.train_config import (
    DataConfig,
    RunConfig,
    TrainConfig,
    merge,
    parse_overrides,
    resume_changes,
)

pytestmark = pytest.mark.cpu("its memory")

GPT2 = ModelConfig.preset("gpt2")


def test_adapters_need_no_moments_for_what_is_frozen():
    model = ModelConfig.preset("gpt2", lora=LoraConfig(rank=8))
    cost = plan.make_plan(model, TrainConfig(), peak_flops=1e12)
    # Two targets a layer, r (in + out) each.
    spare = cost.optimizer_bytes - 3 * 4 * 12 * 2 * 8 * (768 + 768)
    assert 0 <= spare < 3 * 2**21  # in huge pages
    assert cost.weight_bytes > 50 * cost.optimizer_bytes / 3


def test_adapters_of_a_run_are_planned_before_the_model_has_them():
    model = ModelConfig.preset("gpt2", lora=LoraConfig(rank=8))
    wanted = plan.make_plan(model, TrainConfig(), peak_flops=1e12)
    assert plan.make_plan(GPT2, TrainConfig(lora_rank=8), peak_flops=1e12) == wanted


def test_plan_adds_up():
    train = TrainConfig(steps=10, batch_size=4, block_size=64, accumulation=3)
    cost = plan.make_plan(GPT2, train, peak_flops=1e11)
    assert 0 <= cost.weight_bytes - 4 * 124439808 < 2**21  # in huge pages
    assert cost.optimizer_bytes == 3 * cost.weight_bytes
    assert cost.checkpoint_bytes == 3 * 4 * 124439808
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
    assert 0.9 * one < activations(batch_size=4, block_size=128) < 1.1 * one
    assert 1.6 * one < activations(batch_size=16, block_size=64) <= 2 * one
    assert activations(batch_size=8, block_size=64, recompute=True) < one / 2


def test_activations_hold_what_a_block_keeps():
    """GPT-2's block, by hand: x, qkv, heads' output; x, what gelu is taken of."""
    C, F, T = 768, 3072, 64
    block = C + 3 * C + C + C + F
    found = activations(batch_size=1, block_size=2 * T) - activations(batch_size=1, block_size=T)
    assert 1.0 <= found / (4 * T * (12 * block + 50257)) < 1.1


SMALL = {"num_decoder_layers": 2, "hidden_size": 64, "num_heads": 4, "ffn_size": 256}
CASES: dict[str, tuple[ModelConfig, dict[str, object]]] = {
    "decoder": (ModelConfig.preset("gpt-nano"), {}),
    "recomputed": (ModelConfig.preset("gpt-nano"), {"recompute": True}),
    "bfloat16": (ModelConfig.preset("gpt-nano"), {"dtype": "bfloat16"}),
    "frozen": (ModelConfig.preset("gpt-nano"), {"freeze": ("embed.*", "decoder.layers.[01].*")}),
    "adapters": (ModelConfig.preset("gpt-nano", lora=LoraConfig(rank=8)), {}),
    "rotary": (
        ModelConfig.preset("llama-tiny", vocab_size=300, num_kv_heads=2, **SMALL), {}
    ),
    "encoder": (
        ModelConfig.preset("bert-base", vocab_size=300, num_encoder_layers=2), {"batch_size": 4}
    ),
    "both": (ModelConfig.preset("transformer-base", vocab_size=300), {"batch_size": 4}),
    "relative": (ModelConfig.preset("t5-small", vocab_size=300), {"batch_size": 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_planned_is_what_is_used(case):
    """In a new process, whose memory is that of one step; the plan itself takes next to none."""
    config, settings = CASES[case]
    train = TrainConfig(**{"batch_size": 12, "block_size": 48, **settings})
    code = f"""
        import llmcore, numpy as np
        from llmcore.training import plan
        from llmcore.training.train_config import TrainConfig
        config = llmcore.ModelConfig.from_dict({config.to_dict()!r})
        train = TrainConfig.from_dict({train.to_dict()!r})
        cost = plan.make_plan(config, train, peak_flops=1.0)
        before = llmcore.memory_stats()["peak_bytes"]
        model = llmcore.Transformer(config)
        if train.freeze:
            model.freeze(train.freeze)
        model.recompute = train.recompute
        step = llmcore.TrainStep(model, lr=1e-3, dtype=train.dtype)
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 60, (train.batch_size, train.block_size), dtype=np.int32)
        inputs = {{}}
        if config.num_encoder_layers: inputs["enc_ids"] = ids
        if config.num_decoder_layers: inputs["dec_ids"] = ids
        rows = np.arange(int(0.15 * ids.size)) if config.kind == "encoder" else None
        targets = ids.reshape(-1)[: ids.size if rows is None else len(rows)]
        step(llmcore.Batch(**inputs, rows=rows, targets=targets))
        print(cost.memory_bytes, cost.activation_bytes, before,
              plan.used_bytes(model), model._core.activation_bytes())
    """
    script = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    planned, activations, before, used, arena = map(int, printed.split())
    assert before < 2**23  # tables of positions
    assert activations == pytest.approx(arena, rel=0.01)
    assert planned == pytest.approx(used, rel=0.01)


def test_a_plan_takes_no_memory_whatever_the_model():
    giant = ModelConfig.preset(
        "llama-tiny", hidden_size=16384, num_heads=128, num_kv_heads=8, ffn_size=65536,
        num_decoder_layers=100, max_positions=4096,
    )  # fmt: skip
    before = llmcore.memory_stats()
    cost = plan.make_plan(giant, TrainConfig(batch_size=16, block_size=4096), peak_flops=1.0)
    assert cost.weight_bytes > 2**40
    assert cost.activation_bytes > 2**40
    assert llmcore.memory_stats()["current_bytes"] == before["current_bytes"]


def test_batches_too_large_to_make_are_planned_from_smaller_ones(monkeypatch):
    exact = activations(batch_size=4096, block_size=64)
    monkeypatch.setattr(plan, "_MOST_TOKENS", 2**15)
    assert activations(batch_size=4096, block_size=64) == pytest.approx(exact, rel=0.01)
    assert activations(batch_size=10**8, block_size=64) == pytest.approx(
        exact * 1e8 / 4096, rel=0.05
    )


def test_shortages_are_told_with_a_cure_that_helps(tmp_path, monkeypatch):
    train = TrainConfig(batch_size=8, block_size=256, accumulation=3)

    def planned(**changes):
        return plan.make_plan(GPT2, train.replace(**changes), peak_flops=1.0).memory_bytes

    def warning(free, **settings):
        monkeypatch.setattr(plan, "available_memory", lambda _: free)
        return plan.find_shortages(GPT2, train.replace(**settings), tmp_path, loaded=False)

    assert warning(planned() + 1) == []
    [found] = warning(planned() - 1)
    assert "use batch_size 4 with accumulation 6, which takes" in found
    free = planned(batch_size=1) - 1
    [found] = warning(free)
    size, accumulation = map(
        int, re.findall(r"batch_size (\d) with accumulation (\d+) and rec", found)[0]
    )
    assert size * accumulation == 24
    assert (
        planned(batch_size=size, recompute=True)
        <= free
        < planned(batch_size=2 * size, recompute=True)
    )
    [found] = warning(10**9)
    assert "use a smaller model" in found
    with monkeypatch.context() as patch:
        patch.setattr(plan, "available_memory", lambda _: planned())
        weights = plan.make_plan(GPT2, train, peak_flops=1.0).weight_bytes
        patch.setattr(plan, "available_memory", lambda _: planned() - weights)
        assert plan.find_shortages(GPT2, train, tmp_path, loaded=True) == []
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert "while it is replaced" in warning(planned() + 1)[0]


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch):
    train = TrainConfig(batch_size=8, block_size=256)
    needed = plan.make_plan(GPT2, train, peak_flops=1.0).memory_bytes
    monkeypatch.setattr(plan._core, "device_info", lambda: {"memory_bytes": needed})
    plan.refuse_impossible(GPT2, train)
    monkeypatch.setattr(plan._core, "device_info", lambda: {"memory_bytes": needed - 1})
    with pytest.raises(OutOfMemory, match=r"may use .*: use batch_size 4 with accumulation 2"):
        plan.refuse_impossible(GPT2, train)


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
    "cuda": {"build": "OFF", "available": False, "reason": "this build has no CUDA"},
}
# Of a build with CUDA on a machine where all is well.
CUDA = {
    "build": "ON",
    "available": True,
    "reason": "",
    "driver_version": 13020,
    "runtime_version": 13000,
    "devices": [{"name": "NVIDIA H200", "memory_bytes": 2**37, "capability": (9, 0)}],
    "libraries": {"libcublasLt.so.13": {"path": "/packages/libcublasLt.so.13", "reason": ""}},
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


@pytest.mark.parametrize(
    ("change", "has_driver", "words"),
    [
        ({"build": "OFF"}, True, "LLMCORE_CUDA=ON"),
        ({"build": "EMULATED"}, False, "for tests alone"),
        ({"driver_version": 0}, False, "install the driver, 580 or later"),
        ({"driver_version": 0}, True, "--gpus all"),
        ({"driver_version": 12080}, True, "CUDA up to 12.8, this build needs 13.0"),
        ({"devices": []}, True, "CUDA_VISIBLE_DEVICES"),
        ({"devices": [{"name": "T4", "memory_bytes": 1, "capability": (7, 5)}]}, True, "T4, has"),
        ({"libraries": {"libx.so": {"path": "", "reason": "get libx"}}}, True, "get libx"),
    ],
)
def test_doctor_names_the_cure_of_cuda(change, has_driver, words):
    (problem,) = doctor.cuda_problems({**CUDA, **change}, has_driver)
    assert words in problem


def test_doctor_blames_cuda_for_nothing_that_is_well_or_unknown():
    assert doctor.cuda_problems(CUDA, has_driver=True) == []
    assert doctor.cuda_problems(MACHINE["cuda"]) == []
    assert doctor.cuda_problems({"build": "ON", "available": False, "reason": "?"}) == []


def test_doctor_shows_gpus():
    rows = dict(doctor.cuda_rows(CUDA))
    assert rows["cuda"] == "available"
    assert rows["driver"] == "runs CUDA 13.2 (this build needs 13.0)"
    assert rows["cuda:0"] == "NVIDIA H200, 128.0 GiB, compute capability 9.0"
    assert rows["libcublasLt.so.13"] == "/packages/libcublasLt.so.13"
    rows = dict(doctor.cuda_rows({**CUDA, "available": False, "reason": "so", "driver_version": 0}))
    assert (rows["cuda"], rows["driver"]) == ("not available: so", "none")


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
