"""Runs everything a GPU runs once, at the smallest sizes: what `sanitizer` looks over.

It says "ok NAME" or "failed NAME: why" of each, and goes on as long as it can, or for as many
seconds as its argument says.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, by whoever looks over it

import llmcore
from gpu_items.clock import blank, random_tensor
from gpu_items.kernels import CASES, TINY
from gpu_items.products import FORMS
from llmcore import GenerationConfig, ModelConfig, Transformer, _core

_DTYPES = ("float32", "bfloat16")
_LAYERS = {"num_decoder_layers": 1}
_SMALL = {"vocab_size": 67, "hidden_size": 32, "num_heads": 2, "max_positions": 24}
_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {**_SMALL, **_LAYERS, "bos_id": None, "eos_id": None},
    "bert-base": {**_SMALL, "num_encoder_layers": 1},
    "t5-small": {**_SMALL, **_LAYERS, "num_encoder_layers": 1},
    "llama-tiny": {**_SMALL, **_LAYERS, "ffn_size": 40, "num_kv_heads": 1},
}


def families() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of everything, and what runs it."""
    for dtype, (name, make) in product(_DTYPES, CASES.items()):
        # Odd widths too, which have no vectors.
        for sizes in (TINY, replace(TINY, length=7, heads=1, width=9)):
            if "rope" in name and sizes.width % 2:
                continue
            yield f"{name} {dtype} {sizes.width}", partial(_run, make, replace(sizes, dtype=dtype))
    for layer, (form, make) in product(("qkv", "out", "up", "down", "head"), FORMS.items()):
        yield f"product {layer} {form}", lambda make=make, layer=layer: make(layer, 24, 32, 40)[1]()
    for dtype in _DTYPES:
        yield f"product {dtype} of odd sizes", partial(_odd_product, dtype)
    for weights, rows in product(("bfloat16", "int8", "int4"), (1, 3, 20)):
        yield f"product {weights} weights, {rows} rows", partial(_packed, weights, rows)
    for name, dtype in product(_MODELS, _DTYPES):
        yield f"train {name} {dtype}", partial(_train, name, dtype)
    for name, weights in product(("gpt2", "llama-tiny", "t5-small"), ("float32", "bfloat16")):
        yield f"generate {name} {weights}", partial(_generate, name, weights, {})
    for weights in ("int8", "int4"):
        yield f"generate gpt2 {weights}", partial(_generate, "gpt2", weights, {})
    for more in (
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 1},
        {"num_beams": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"cache_dtype": "bfloat16"},
        {"cache_dtype": "int8"},
    ):
        yield f"generate gpt2 {more}", partial(_generate, "gpt2", "float32", more)


def _run(make: Callable[..., Any], sizes: Any) -> None:
    make(sizes, None).call()


def _odd_product(dtype: str) -> None:
    a, b, c = random_tensor(5, 7, dtype=dtype), random_tensor(9, 7, dtype=dtype), blank(5, 9)
    _core.matmul(a=a, b=b, c=c, transpose_b=True)


def _packed(weights: str, rows: int) -> None:
    weight = _core.PackedWeight(random_tensor(48, 64), weights)
    weight.matmul(random_tensor(rows, 64), blank(rows, 48))


def _model(name: str, dtype: str = "float32") -> Transformer:
    return Transformer(ModelConfig.preset(name, **_MODELS[name]), device="cuda", dtype=dtype)


def _train(name: str, dtype: str) -> None:
    """Three steps: the third is the first that could be a replay of another."""
    model = _model(name)
    ids = np.random.default_rng(0).integers(4, 60, (2, 9))
    if model.config.kind == "decoder":
        batch = llmcore.CausalLM()(ids)
    elif model.config.kind == "encoder":
        batch = llmcore.MaskedLM(mask_id=3, vocab_size=67)(ids)
    else:
        batch = llmcore.Seq2Seq()(ids.tolist(), [row[:5] for row in ids.tolist()])
    step = llmcore.TrainStep(model, lr=1e-3, weight_decay=0.1, max_grad_norm=1.0, dtype=dtype)
    losses = [step(batch).loss for _ in range(3)]
    if not np.isfinite(losses).all():
        raise llmcore.LlmcoreError(f"losses {losses}")


def _generate(name: str, weights: str, more: dict[str, Any]) -> None:
    settings = GenerationConfig(max_new_tokens=4, min_new_tokens=4, stop_ids=[], **more)
    _model(name, weights).generate([[5, 6, 7], [8, 9, 10, 11, 12]], settings)


def main(seconds: float = float("inf")) -> None:
    """Run them until time is over, some of each kind first; the exit status tells of failures."""
    end, stride = time.monotonic() + seconds, 8
    found = list(families())
    failed = 0
    for name, run in [one for first in range(stride) for one in found[first::stride]]:
        if time.monotonic() > end:
            break
        print(f"begin {name}", flush=True)
        try:
            run()
            llmcore.zeros([1], device="cuda").numpy()  # waits: a failure is this one's
        except Exception as error:
            failed += 1
            print(f"failed {name}: {type(error).__name__}: {error}"[:300], flush=True)
        else:
            print(f"ok {name}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
