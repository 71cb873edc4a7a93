"""What a GPU is said to need, and what it then takes, by the emulated one or another."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

import llmcore
from llmcore import DeviceError, LoraConfig, ModelConfig, OutOfMemory, _core
from llmcore.training import plan
from llmcore.training.train_config import TrainConfig
from test_device import BOTH, DECODER, ENCODER

CASES: dict[str, tuple[ModelConfig, dict[str, object]]] = {
    "float32": (ModelConfig.preset("gpt2", **DECODER), {}),
    "bfloat16": (ModelConfig.preset("gpt2", **DECODER), {"dtype": "bfloat16"}),
    "recomputed": (ModelConfig.preset("gpt2", **DECODER), {"recompute": True, "dtype": "bfloat16"}),
    "accumulated": (ModelConfig.preset("gpt2", **DECODER), {"accumulation": 3}),
    "frozen": (ModelConfig.preset("gpt2", **DECODER), {"freeze": ("embed.*",)}),
    "adapters": (ModelConfig.preset("gpt2", **DECODER, lora=LoraConfig(rank=2)), {}),
    "rotary": (
        ModelConfig.preset("llama-tiny", **DECODER, num_kv_heads=1, ffn_size=40),
        {"dtype": "bfloat16"},
    ),
    "encoder": (ModelConfig.preset("bert-base", **ENCODER), {}),
    "both": (ModelConfig.preset("transformer-base", **BOTH), {"dtype": "bfloat16"}),
    "relative": (ModelConfig.preset("t5-small", **BOTH), {}),
}
needs_cuda = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
knows_cuda = pytest.mark.skipif(_core.cuda_build == "OFF", reason="this build knows no GPU")
GPT2 = ModelConfig.preset("gpt2")


@needs_cuda
@pytest.mark.parametrize("case", CASES)
def test_what_is_planned_is_what_is_used(case):
    """To the byte, in a new process, which did nothing but that step."""
    config, settings = CASES[case]
    train = TrainConfig(**{"batch_size": 3, "block_size": 24, **settings})
    code = f"""
        import llmcore, numpy as np
        from llmcore.training import plan
        from llmcore.training.train_config import TrainConfig
        config = llmcore.ModelConfig.from_dict({config.to_dict()!r})
        train = TrainConfig.from_dict({train.to_dict()!r})
        cost = plan.make_plan(config, train, peak_flops=1.0, device="cuda")
        before = llmcore.memory_stats("cuda")["peak_bytes"]
        model = llmcore.Transformer(config, device="cuda")
        if train.freeze:
            model.freeze(train.freeze)
        model.recompute = train.recompute
        step = llmcore.TrainStep(model, lr=1e-3, dtype=train.dtype)
        batch = plan.fullest_batch(config, train)
        for _ in range(2):
            step([batch] * train.accumulation).loss
        besides = cost.device_bytes
        print(cost.memory_bytes - besides, cost.activation_bytes, before,
              plan.used_bytes(model), model._core.activation_bytes())
    """
    script = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    planned, activations, before, used, arena = map(int, done.stdout.split())
    assert before == 0
    assert activations == arena
    workspace, state = 32 << 20, 1 << 10  # state: with the optimizer's table of parts
    assert planned <= used - workspace < planned + state


@needs_cuda
def test_what_cannot_fit_is_refused_with_a_cure(monkeypatch):
    train = TrainConfig(batch_size=8, block_size=256, dtype="bfloat16")
    needed = plan.make_plan(GPT2, train, peak_flops=1.0, device="cuda").memory_bytes

    def has(memory):
        facts = {"cuda": {"devices": [{"memory_bytes": memory}]}}
        monkeypatch.setattr(plan._core, "device_info", lambda: facts)

    has(needed)
    plan.refuse_impossible(GPT2, train, "cuda:0")
    has(needed - 1)
    with pytest.raises(OutOfMemory, match=r"cuda:0 has .*: use batch_size 4 with accumulation 2"):
        plan.refuse_impossible(GPT2, train, "cuda:0")


@needs_cuda
def test_what_others_hold_is_told_before_the_run(monkeypatch, tmp_path):
    train = TrainConfig(batch_size=8, block_size=256)
    cost = plan.make_plan(GPT2, train, peak_flops=1.0, device="cuda")
    monkeypatch.setattr(plan._core, "free_memory", lambda index: cost.memory_bytes)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    assert plan.find_shortages(GPT2, train, tmp_path, loaded=False, device="cuda") == []
    monkeypatch.setattr(plan._core, "free_memory", lambda index: cost.memory_bytes - (1 << 30))
    [found] = plan.find_shortages(GPT2, train, tmp_path, loaded=False, device="cuda")
    assert "of memory are free: use batch_size" in found


@knows_cuda
def test_inputs_of_all_micro_batches_are_planned():
    """Ids, positions, targets, weights and their shares, 20 bytes a token, in blocks of a MiB."""

    def planned(**settings):
        train = TrainConfig(batch_size=8, block_size=256, **settings)
        return plan.make_plan(GPT2, train, peak_flops=1.0, device="cuda").activation_bytes

    more = planned(accumulation=101) - planned(accumulation=1)
    assert more % (1 << 20) == 0
    assert 0 <= more + (1 << 20) - 101 * 20 * 8 * 256 < 2 << 20


@knows_cuda
def test_a_plan_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(plan._core, "cuda_unavailable_reason", lambda: "there is none")
    train = TrainConfig(batch_size=64, block_size=1024, dtype="bfloat16")
    cost = plan.make_plan(GPT2, train, device="cuda:7")
    assert cost.peak_flops is None
    assert cost.seconds is None
    assert "CUDA about" in cost.describe_memory()
    # Two bytes a number of what a layer keeps a token, 10 C, beside the logits of a gibibyte.
    kept = 64 * 1024 * 12 * 10 * 768 * 2
    assert kept < cost.activation_bytes < 1.5 * kept


@pytest.mark.skipif(_core.cuda_build != "OFF", reason="this build knows GPUs")
def test_a_build_that_knows_no_gpu_says_so():
    with pytest.raises(DeviceError, match="no CUDA back end"):
        plan.make_plan(GPT2, TrainConfig(), peak_flops=1.0, device="cuda")
