"""Fifty steps from the same weights on the same batches: do all engines learn the same?"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import llmcore
from gpu_items import Part, Result, Setting, Tell, torch_on_gpu
from llmcore.bench.engines.torch import batch_on, load_model, mean_loss

#: The largest relative difference of a loss from the CPU's.
BAR = 1e-2
_TEXT = Path(llmcore.__file__).parent / "data/datasets/tinyshakespeare.txt.gz"
_SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
_REFERENCE = "cpu float32"


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts."""
    return [
        Part(_REFERENCE, partial(_llmcore, setting, "cpu", "float32"), 120),
        Part("cuda float32", partial(_llmcore, setting, "cuda", "float32"), 60),
        Part("cuda bfloat16", partial(_llmcore, setting, "cuda", "bfloat16"), 60),
        Part("torch float32", partial(_torch, setting, "float32"), 60),
        Part("torch bfloat16", partial(_torch, setting, "bfloat16"), 60),
    ]


def conclusion(results: dict[str, Result]) -> Result | None:
    """Compare the losses with those of the CPU."""
    losses = {name: part["losses"] for name, part in results.items() if "losses" in part}
    reference = losses.pop(_REFERENCE, None)
    if reference is None or not losses:
        return None
    largest = {
        name: max(
            (abs(a - b) / abs(b) for a, b in zip(found, reference, strict=False)), default=None
        )
        for name, found in losses.items()
    }
    return {
        "largest_relative_difference": largest,
        "bar": BAR,
        "line": ", ".join(
            f"{name} {value:.1e}{'' if value is not None and value <= BAR else ' ABOVE THE BAR'}"
            for name, value in largest.items()
        ),
    }


def _config(setting: Setting) -> llmcore.ModelConfig:
    # With biases and the norms of GPT-2, whose layout transformers reads.
    sizes = (
        {"hidden_size": 32, "num_decoder_layers": 1, "num_heads": 2, "max_positions": 16}
        if setting.tiny
        else {"hidden_size": 256, "num_decoder_layers": 4, "num_heads": 4, "max_positions": 128}
    )
    return llmcore.ModelConfig.preset("gpt2", vocab_size=128, bos_id=None, eos_id=None, **sizes)


def _batches(setting: Setting) -> Iterator[llmcore.Batch]:
    text = np.frombuffer(gzip.decompress(_TEXT.read_bytes()), np.uint8) % 128
    batch, length, steps = (2, 16, 3) if setting.tiny else (16, 128, 50)
    random = np.random.default_rng(0)
    for _ in range(steps):
        starts = random.integers(0, len(text) - length - 1, batch)
        ids = np.stack([text[start : start + length + 1] for start in starts]).astype(np.int64)
        yield llmcore.CausalLM()(ids)


def _llmcore(setting: Setting, device: str, dtype: str, tell: Tell) -> Result:
    with _weights(setting) as folder:
        model = llmcore.Transformer.from_pretrained(folder, device=device)
    step = llmcore.TrainStep(model, max_grad_norm=1.0, dtype=dtype, **_SETTINGS)
    return _train(setting, lambda batch: step(batch).loss)


def _torch(setting: Setting, dtype: str, tell: Tell) -> Result:
    torch = torch_on_gpu()
    with _weights(setting) as folder:
        model = load_model(folder, "decoder", device="cuda").train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True, **_SETTINGS)

    def step(batch: llmcore.Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = mean_loss(model, **batch_on(batch, "cuda"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return _train(setting, step)


def _weights(setting: Setting) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the weights that all begin with."""
    folder = tempfile.TemporaryDirectory()
    llmcore.Transformer(_config(setting), seed=0).save_pretrained(folder.name)
    return folder


def _train(setting: Setting, step: Callable[[Any], float]) -> Result:
    losses = [step(batch) for batch in _batches(setting)]
    config = _config(setting)
    return {
        "model": config.to_dict(),
        "steps": len(losses),
        "losses": losses,
        "line": f"{len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}",
    }
