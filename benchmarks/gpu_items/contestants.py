"""Who trains and generates in the contests of `training` and `decode`, each in its own process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import llmcore
from gpu_items import torch_on_gpu
from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built, Run
from llmcore.bench.workloads import Generation, Training
from llmcore.hf import config_to_hf

_SETTINGS = {"lr": 1e-4, "weight_decay": 0.1}
_SPREAD = 0.1  # of random weights to generate with: from 0.02 every token would follow itself


def train_llmcore(workload: dict[str, Any], batches: Sequence[int], steps: int) -> Built:
    """Train with the first of the batch sizes that there is memory for."""
    training = Training(**{**workload, "batch": batches[0]})
    for size in batches:
        batch = replace(training, batch=size).data()
        model = llmcore.Transformer(training.config, device="cuda")
        step = llmcore.TrainStep(model, max_grad_norm=1.0, dtype=training.dtype, **_SETTINGS)
        try:
            losses = [step(batch).loss for _ in range(3)]
        except llmcore.OutOfMemory:
            if size == batches[-1]:
                raise
            del model, step
            gc.collect()
            continue
        witness = {
            "batch": size,
            "losses": losses,
            "device_bytes": llmcore.memory_stats("cuda")["peak_bytes"],
        }
        run = _several(partial(step, batch), lambda result: result.loss, steps)
        return Built({"step": run}, llmcore.__version__, witness)
    raise AssertionError("no batch size was given")


def train_torch(workload: dict[str, Any], batches: Sequence[int], steps: int) -> Built:
    """The same with transformers' model, compiled, in bfloat16 by autocast, and fused AdamW."""
    torch = torch_on_gpu()
    training = Training(**{**workload, "batch": batches[0]})
    model = torch_model(training.config, "float32").train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], fused=True, **_SETTINGS
    )
    loss_of = torch.compile(torch_loss)

    def step(data: dict[str, Any]) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=training.dtype == "bfloat16"):
            loss = loss_of(model, **data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    for size in batches:
        data = torch_batch(torch, replace(training, batch=size).data())
        try:
            losses = [float(step(data)) for _ in range(3)]
        except torch.OutOfMemoryError:
            if size == batches[-1]:
                raise
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
            continue
        witness = {
            "batch": size,
            "losses": losses,
            "device_bytes": torch.cuda.max_memory_reserved(),
        }
        run = _several(partial(step, data), float, steps)
        return Built({"step": run}, torch.__version__, witness)
    raise AssertionError("no batch size was given")


def _several(step: Callable[[], Any], wait: Callable[[Any], object], steps: int) -> Run:
    """Return what takes several steps, reads the last one's loss, and says what one took."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            last = step()
        wait(last)
        return (time.perf_counter() - start) / steps

    return run


def torch_model(config: llmcore.ModelConfig, dtype: str) -> Any:
    """Return transformers' model of a config with random weights, on the GPU."""
    import torch
    import transformers

    classes = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModelForMaskedLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }
    values = config_to_hf(config)
    theirs = transformers.AutoConfig.for_model(**values)
    if getattr(theirs, "activation_function", None) == "gelu_new":
        theirs.activation_function = "gelu_pytorch_tanh"  # the same function in one kernel
    with torch.device("cuda"):
        return classes[config.kind].from_config(
            theirs, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )


def torch_batch(torch: Any, batch: llmcore.Batch) -> dict[str, Any]:
    """Return a batch's arrays on the GPU, where they stay."""
    arrays = {name: getattr(batch, name) for name in ("enc_ids", "dec_ids", "rows", "targets")}
    return {
        name: None if array is None else torch.from_numpy(np.asarray(array, np.int64)).to("cuda")
        for name, array in arrays.items()
    }


def torch_loss(model: Any, enc_ids: Any, dec_ids: Any, rows: Any, targets: Any) -> Any:
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


def generate_llmcore(workload: dict[str, Any]) -> Built:
    """Generate with `Transformer.generate`."""
    generation = Generation(**workload)
    return measure_generator(_Llmcore(generation), generation)


def generate_torch(workload: dict[str, Any], *, static: bool) -> Built:
    """Generate with transformers: as it is, or with a cache that does not grow, compiled."""
    generation = Generation(**workload)
    return measure_generator(_Transformers(generation, static), generation)


class _Llmcore:
    version = llmcore.__version__

    def __init__(self, workload: Generation) -> None:
        self._workload = workload
        self._model: llmcore.Transformer | None = None

    def load(self) -> None:
        workload = self._workload
        config = workload.config.replace(init_std=_SPREAD)
        self._model = llmcore.Transformer(config, device="cuda", dtype=workload.weights)

    def drop(self) -> None:
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        assert self._model is not None  # loaded before
        settings = llmcore.GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, num_beams=beams, stop_ids=[],
            cache_dtype="float32" if self._workload.weights == "float32" else "bfloat16",
        )  # fmt: skip
        return [list(result.ids) for result in self._model.generate(prompts, settings)]


class _Transformers:
    def __init__(self, workload: Generation, static: bool) -> None:
        import transformers

        torch = torch_on_gpu()
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        self._workload = workload
        self._more = {"cache_implementation": "static"} if static else {}
        self._model: Any = None

    def load(self) -> None:
        config = self._workload.config.replace(init_std=_SPREAD)
        self._model = torch_model(config, self._workload.weights).eval()

    def drop(self) -> None:
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device="cuda")
        with torch.inference_mode():
            result = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=self._workload.config.eos_id,
                **self._more,
            )
        found: list[list[int]] = result[:, ids.shape[1] :].tolist()
        return found
