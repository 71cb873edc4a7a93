"""PyTorch among the contestants: training steps as its users write them, eager or compiled.

The models are those of transformers, with fused attention; they were faster than the layers of
`torch.nn` wherever both were tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcore.bench.worker import Built, reset_peak_memory, timed
from llmcore.bench.workloads import Training


def train(workload: dict[str, Any], folder: str, *, compiled: bool = False) -> Built:
    """Train the model in the folder: cross-entropy, clipping, fused AdamW; autocast in bfloat16."""
    import torch

    training = Training(**workload)
    model = load_model(folder, training.config.kind).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    data = training.data()
    batch = {
        name: None if array is None else torch.from_numpy(np.asarray(array, np.int64))
        for name in ("enc_ids", "dec_ids", "rows", "targets")
        for array in [getattr(data, name)]
    }
    loss_of = torch.compile(_loss) if compiled else _loss

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.dtype == "bfloat16"):
            loss = loss_of(model, **batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    reset_peak_memory()
    return Built({"step": timed(step)}, torch.__version__, step())


def load_model(folder: str, kind: str, dtype: str = "float32") -> Any:
    """Read a model that llmcore wrote, with the fastest attention and activation there are for it.

    Args:
        folder: Where it lies.
        kind: `ModelConfig.kind`.
        dtype: Of the weights and the computation.
    """
    import torch
    import transformers

    classes = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModelForMaskedLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }
    config = transformers.AutoConfig.from_pretrained(folder)
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function in one kernel
    return classes[kind].from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )


def _loss(model: Any, enc_ids: Any, dec_ids: Any, rows: Any, targets: Any) -> Any:
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
