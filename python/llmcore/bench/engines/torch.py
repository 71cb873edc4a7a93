"""PyTorch among the contestants: training steps as its users write them, eager or compiled.

The models are those of transformers, with fused attention; they were faster than the layers of
`torch.nn` wherever both were tried.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llmcore.bench.worker import Built, reset_peak_memory, steps_a_run, timed_steps
from llmcore.bench.workloads import Training
from llmcore.config import ModelConfig
from llmcore.hf import config_to_hf
from llmcore.objectives import Batch


def train(
    workload: dict[str, Any], folder: str, *, compiled: bool = False, device: str = "cpu"
) -> Built:
    """Train the model in the folder: cross-entropy, clipping, fused AdamW; autocast in bfloat16."""
    import torch

    training = Training(**workload)
    model = load_model(folder, training.config.kind, device=device)
    take = stepper(model, training.dtype, device, compiled=compiled)
    step = partial(take, batch_on(training.data(), device))
    reset_peak_memory()
    return Built(
        {"step": timed_steps(step, float, steps_a_run(device))},
        torch.__version__,
        float(step()),
        device_peak=device_peak(device),
    )


def stepper(
    model: Any, dtype: str, device: str, *, compiled: bool
) -> Callable[[dict[str, Any]], Any]:
    """Return what takes a step on a batch's arrays, and returns the loss before it is known."""
    import torch

    matrices = [p for p in model.train().parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    loss_of = torch.compile(mean_loss) if compiled else mean_loss
    kind = torch.device(device).type

    def step(arrays: dict[str, Any]) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(model, **arrays)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def batch_on(batch: Batch, device: str) -> dict[str, Any]:
    """Return a batch's arrays on the device, where they stay."""
    import torch

    arrays = {name: getattr(batch, name) for name in ("enc_ids", "dec_ids", "rows", "targets")}
    return {
        name: None if array is None else torch.from_numpy(np.asarray(array, np.int64)).to(device)
        for name, array in arrays.items()
    }


def device_peak(device: str) -> Callable[[], int] | None:
    """Return what `Built.device_peak` is to be."""
    import torch

    return None if device == "cpu" else lambda: int(torch.cuda.max_memory_reserved(device))


def load_model(
    source: str | ModelConfig, kind: str, dtype: str = "float32", device: str = "cpu"
) -> Any:
    """Return a model of transformers, with the fastest attention and activation there are for it.

    Args:
        source: Where it lies, as llmcore wrote it; or an architecture, for random weights.
        kind: `ModelConfig.kind`.
        dtype: Of the weights and the computation.
        device: Where it is to be.
    """
    import torch
    import transformers

    classes = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModelForMaskedLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }
    if isinstance(source, ModelConfig):
        config = transformers.AutoConfig.for_model(**config_to_hf(source))
    else:
        config = transformers.AutoConfig.from_pretrained(source)
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function in one kernel
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if isinstance(source, ModelConfig):
        with torch.device(device):
            return classes[kind].from_config(config, **settings)
    return classes[kind].from_pretrained(source, config=config, **settings).to(device)


def mean_loss(model: Any, enc_ids: Any, dec_ids: Any, rows: Any, targets: Any) -> Any:
    """The mean loss of a batch without padding; a masked model's head runs on `rows` alone."""
    from torch.nn.functional import cross_entropy

    if dec_ids is None:
        hidden = model.base_model(enc_ids).last_hidden_state
        return cross_entropy(model.cls(hidden.flatten(0, 1)[rows]), targets)
    if enc_ids is None:
        logits = model(dec_ids, use_cache=False).logits
    else:
        logits = model(enc_ids, decoder_input_ids=dec_ids, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), targets)
