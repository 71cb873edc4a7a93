"""Training steps of the models people train, beside PyTorch's compiled ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import llmcore
from gpu_items import THREADS, Part, Result, Setting, Tell, torch_on_gpu
from gpu_items.clock import percent, sold_with
from llmcore.bench.turns import Contestant, Outcome, take_turns
from llmcore.bench.workloads import Training, find_config
from llmcore.training.plan import make_plan
from llmcore.training.train_config import TrainConfig

#: The share of the peak to reach first, by model.
BARS = {"gpt2": 0.50, "gpt2-medium": 0.54, "gpt2-large": 0.56, "gpt2-xl": 0.58}
#: And how many times PyTorch's rate.
BAR_OVER_TORCH = 1.15


@dataclass(frozen=True)
class Work:
    """What is trained: of the batch sizes the first that fits."""

    model: str
    length: int
    batches: Sequence[int]
    dtype: str = "bfloat16"
    vocab_size: int | None = None

    @property
    def workload(self) -> Training:
        """The workload, of the largest batch."""
        return Training(self.model, self.batches[0], self.length, self.dtype, self.vocab_size)


_BATCHES = (64, 32, 16, 8)
_GPT = {name: Work(name, 1024, _BATCHES) for name in BARS}
_BERT = Work("bert-base", 512, (64, 32, 16))
_TRANSFORMER = Work("transformer-base", 128, (256, 128, 64))
_TINY = Work("gpt-nano", 8, (2,))


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts: every model alone first, which takes seconds, then beside torch."""
    if setting.tiny:
        works, late = [_TINY, Work("gpt-nano", 8, (2,), "float32")], [_TINY]
    else:
        works = [*_GPT.values(), _BERT, _TRANSFORMER, Work("gpt2", 1024, _BATCHES, "float32")]
        late = [_GPT[n] for n in ("gpt2", "gpt2-xl")]
        late += [_BERT, _TRANSFORMER, *(_GPT[n] for n in ("gpt2-medium", "gpt2-large"))]
    alone = [Part(_name(w), partial(_alone, setting, w), 60) for w in works]
    return alone + [
        Part(f"{_name(w)} beside torch-compile", partial(_beside, setting, w), 150) for w in late
    ]


def _name(work: Work) -> str:
    return f"{work.model} {work.dtype}"


def _contestant(name: str, work: Work, batches: Sequence[int], setting: Setting) -> Contestant:
    steps = 1 if setting.tiny else 5
    return Contestant(
        name,
        f"gpu_items.contestants:train_{'llmcore' if name == 'llmcore' else 'torch'}",
        {"workload": asdict(work.workload), "batches": list(batches), "steps": steps},
    )


def _alone(setting: Setting, work: Work, tell: Tell) -> Result:
    [gpu, *_] = llmcore.device_info()["cuda"]["devices"]
    # No time is spent on batches that there is no memory for.
    hopeful = [b for b in work.batches if _planned_bytes(work, b) < gpu["memory_bytes"]]
    contestants = [_contestant("llmcore", work, hopeful or work.batches[-1:], setting)]
    return _report(setting, work, _compete(setting, contestants))


def _planned_bytes(work: Work, batch: int) -> int:
    train = TrainConfig(batch_size=batch, block_size=work.length, dtype=work.dtype)
    return make_plan(work.workload.config, train, peak_flops=1.0, device="cuda").memory_bytes


def _beside(setting: Setting, work: Work, tell: Tell) -> Result:
    """In turns with the largest batch that both have memory for, or else one after the other."""
    together = _fitting_together(setting, work)
    # Two that do not fit together have the GPU to themselves, one after the other.
    groups = [["llmcore", "torch-compile"]] if together else [["llmcore"], ["torch-compile"]]
    outcomes: list[Outcome] = []
    for names in groups:
        batches = together or work.batches
        contestants = [_contestant(name, work, batches, setting) for name in names]
        outcomes += _compete(setting, contestants)
        tell(_report(setting, work, outcomes))
    return {**_report(setting, work, outcomes), "in_turns": len(groups) == 1}


def _compete(setting: Setting, contestants: Sequence[Contestant]) -> list[Outcome]:
    rounds = 2 if setting.tiny else 5
    return take_turns(
        contestants, ["step"], rounds=rounds, seconds=0.0, timeout=140, threads=THREADS
    )


def _fitting_together(setting: Setting, work: Work) -> list[int]:
    """Return the batch sizes for which both models may fit in memory at once, by a rough count."""
    if setting.tiny:
        return list(work.batches)
    free, _ = torch_on_gpu().cuda.mem_get_info()
    config = find_config(work.model, work.vocab_size)
    layers = config.num_encoder_layers + config.num_decoder_layers
    # Activations in bfloat16 that backward needs, and PyTorch's logits in two precisions.
    token = 36 * layers * config.hidden_size
    logits = 10 * config.vocab_size if config.kind != "encoder" else 2 * config.vocab_size
    fixed = 2 * 18 * config.num_parameters() + (2 << 30)
    return [b for b in work.batches if fixed + b * work.length * (2 * token + logits) < 0.9 * free]


def _report(setting: Setting, work: Work, outcomes: Sequence[Outcome]) -> Result:
    """Return rates: tokens a second, and the share of the peak that they are."""
    config = find_config(work.model, work.vocab_size)
    sold = sold_with(setting.folder)
    peak = sold and sold[0 if work.dtype == "bfloat16" else 1]
    report: Result = {
        "model": work.model,
        "length": work.length,
        "dtype": work.dtype,
        "parameters": config.num_parameters(),
        "bar": BARS.get(work.model) if work.dtype == "bfloat16" else None,
        "engines": {},
    }
    line = []
    for outcome in outcomes:
        turns = outcome.turns.get("step")
        error = outcome.error or (turns.error if turns else None)
        engine: Result = {"version": outcome.version, "error": error}
        report["engines"][outcome.name] = engine
        if turns is None or not turns.seconds:
            line.append(f"{outcome.name}: {error}")
            continue
        batch = outcome.witness["batch"]
        measure = Training(work.model, batch, work.length, work.dtype, work.vocab_size).measures()[
            0
        ]
        seconds = statistics.median(turns.seconds)
        engine |= {
            **outcome.witness,
            "median_seconds": seconds,
            "seconds": turns.seconds,
            "tokens_per_second": measure.amount / seconds,
            "ready_seconds": outcome.ready_seconds,
        }
        flops = measure.operations / seconds
        if config.kind == "decoder":
            token = 6 * config.num_parameters()
            token += 6 * config.num_decoder_layers * config.hidden_size * work.length
            flops = token * measure.amount / seconds
        engine["flops"] = flops
        engine["share_of_peak"] = flops / peak if peak else None
        line.append(
            f"{outcome.name} B {batch}: {engine['tokens_per_second']:,.0f} tokens/s, "
            f"{percent(engine['share_of_peak'])} of peak, {engine['device_bytes'] / 1e9:.1f} GB"
        )
    rates = [e.get("tokens_per_second") for e in report["engines"].values()]
    if len(rates) == 2 and all(rates):
        report["over_torch"] = rates[0] / rates[1]
        line.append(f"{report['over_torch']:.2f} x torch-compile (bar {BAR_OVER_TORCH})")
    if not any(rates):
        raise llmcore.LlmcoreError("; ".join(line))
    if report["bar"]:
        line.append(f"bar {percent(report['bar'])}")
    return {**report, "line": "; ".join(line)}
