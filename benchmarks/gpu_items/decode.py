"""Tokens a second after a prompt, beside what reading the weights allows."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from functools import partial

import llmcore
from gpu_items import THREADS, Part, Result, Setting, Tell, torch_on_gpu
from gpu_items.clock import bandwidth, percent
from llmcore.bench.turns import Contestant, Outcome, take_turns
from llmcore.bench.workloads import Generation

#: Tokens a second for one text to reach first, bfloat16, by model.
BARS = {"gpt2": 8000, "gpt2-medium": 4000, "gpt2-large": 2100, "gpt2-xl": 1050}
_BATCHES = (1, 8, 32)


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts: every model in bfloat16, then PyTorch beside, then fewer bits."""
    if setting.tiny:
        ours = [Generation("gpt-nano", 4, 4, (1, 2), prefill=8, weights=w)
                for w in ("bfloat16", "int8", "int4")]  # fmt: skip
        return [_part(setting, work) for work in ours]

    def works(weights: str) -> list[Generation]:
        return [Generation(model, 128, 128, _BATCHES, weights=weights) for model in BARS]

    beside = [Generation(m, 128, 128, (1, 8), weights="bfloat16") for m in ("gpt2", "gpt2-xl")]
    return [
        *(_part(setting, work) for work in works("bfloat16")),
        *(_part(setting, work, peers=True) for work in beside),
        *(_part(setting, work) for weights in ("int8", "int4") for work in works(weights)),
    ]


def _part(setting: Setting, work: Generation, *, peers: bool = False) -> Part:
    name = f"{work.model} {work.weights}" + (" beside transformers" if peers else "")
    return Part(name, partial(_decode, setting, work, peers), 120 if peers else 60)


def _decode(setting: Setting, work: Generation, peers: bool, tell: Tell) -> Result:
    workload = asdict(work)
    contestants = [
        Contestant("llmcore", "gpu_items.contestants:generate_llmcore", {"workload": workload})
    ]
    if peers:
        torch_on_gpu()
        for name, static in (("transformers", False), ("transformers compiled", True)):
            options = {"workload": workload, "static": static}
            target = "gpu_items.contestants:generate_torch"
            contestants.append(Contestant(name, target, options))
    measures = {m.name: m for m in work.measures() if m.name.startswith(("decode", "prefill"))}
    outcomes = take_turns(
        contestants, list(measures), rounds=1 if setting.tiny else 3, seconds=0.0, timeout=110,
        threads=THREADS,
    )  # fmt: skip
    memory = bandwidth(setting.folder)
    engines = {outcome.name: _rates(outcome, work, memory) for outcome in outcomes}
    if not any("rates" in engine for engine in engines.values()):
        raise llmcore.LlmcoreError("; ".join(f"{n}: {e['error']}" for n, e in engines.items()))
    bar = BARS.get(work.model) if work.weights == "bfloat16" else None
    line = [f"{name}: {engine['line']}" for name, engine in engines.items()]
    return {
        "workload": workload,
        "engines": engines,
        "bar_batch_1": bar,
        "line": "; ".join(line) + (f"; bar at batch 1 {bar:,}" if bar else ""),
    }


def _rates(outcome: Outcome, work: Generation, memory: float | None) -> Result:
    """Return tokens a second of each measure, and the most that reading from memory allows."""
    if not outcome.turns:
        return {"error": outcome.error, "line": str(outcome.error)}
    rates: Result = {}
    for measure in work.measures():
        turns = outcome.turns.get(measure.name)
        if turns is None or not turns.seconds:
            continue
        seconds = statistics.median(turns.seconds)
        rates[measure.name] = {
            "median_seconds": seconds,
            "seconds": turns.seconds,
            "tokens_per_second": measure.amount / seconds,
            "bytes": measure.bytes,
            # A prefill's limit is another.
            "limit_tokens_per_second": measure.amount * memory / measure.bytes
            if memory and measure.name.startswith("decode")
            else None,
        }
    errors = {name: turns.error for name, turns in outcome.turns.items() if turns.error}
    texts = [
        f"{name.replace('decode batch', 'B')} {rate['tokens_per_second']:,.0f} tokens/s"
        + _of_limit(rate)
        for name, rate in rates.items()
    ]
    found: Result = {"version": outcome.version, "errors": errors, "witness": outcome.witness}
    if rates:
        found["rates"] = rates
    return {**found, "error": outcome.error, "line": ", ".join([*texts, *errors.values()])}


def _of_limit(rate: Result) -> str:
    limit = rate["limit_tokens_per_second"]
    return f" ({percent(rate['tokens_per_second'] / limit)} of the limit)" if limit else ""
