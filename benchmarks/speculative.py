"""How much sooner is a text there when several guessed tokens are confirmed in one pass?

    python benchmarks/speculative.py --out speculative.json

Three cases, each continued plainly, with n-gram guesses and with a draft model's, in turns in one
process, every text compared with the plain one.

shakespeare: a model on characters and a smaller draft, both trained here, prompts from the
held-out tenth, greedy and sampled. What guesses are worth on a text that is like one.

loop: GPT-2 124M of random weights, whose greedy text soon repeats itself, so that n-grams are right
nearly always: the most that guessing can give. The draft is the model's own first two layers with
its embedding and head.

wrong: the same model, sampled, where hardly a guess is right: what guessing costs. The draft is a
random model of the same size as the other draft.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, new_report, set_threads, write_report

import llmcore
from llmcore import GenerationConfig, ModelConfig, Transformer
from llmcore.objectives import CausalLM
from llmcore.tokenizer import Tokenizer
from llmcore.training.schedule import Schedule


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    report = new_report(args, __doc__, cases={})

    def record(case: str, *call: Any) -> None:
        report["cases"][case] = compare(args, *call)
        for name, found in report["cases"][case].items():
            print(f"{case} {name}: {found}", flush=True)
        write_report(args.out, report)

    model, draft, prompts = gpt2(args)
    config = GenerationConfig(
        max_new_tokens=args.tokens, stop_ids=(), num_draft_tokens=args.guesses
    )
    record("loop", model, draft, prompts, config)
    unlike = Transformer(draft.config, seed=args.seed + 1)
    record("wrong", model, unlike, prompts, replace(config, do_sample=True))
    del model, draft, unlike
    model, draft, prompts, report["training"] = shakespeare(args)
    for name, sampling in (("greedy", {}), ("sampled", {"do_sample": True, "temperature": 0.8})):
        record(f"shakespeare {name}", model, draft, prompts, replace(config, **sampling))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--tokens", type=int, default=128, help="new tokens of each text")
    add("--guesses", type=int, default=GenerationConfig.num_draft_tokens)
    add("--turns", type=int, default=5)
    add("--steps", type=int, default=800, help="of training, of either Shakespeare model")
    add("--width", type=int, default=384)
    add("--layers", type=int, default=6)
    add("--data", type=Path, default=DATA / "tinyshakespeare" / "input.txt")
    add("--out", default="speculative.json", help="written after each case")
    return parser.parse_args()


def gpt2(args: argparse.Namespace) -> tuple[Transformer, Transformer, list[list[int]]]:
    """GPT-2 124M of random weights, its first two layers as a draft, and random prompts."""
    model = Transformer(ModelConfig.preset("gpt2"), seed=args.seed)
    draft = Transformer(model.config.replace(num_decoder_layers=2), seed=args.seed)
    weights = model.parameters()
    for name, parameter in draft.parameters().items():
        np.copyto(parameter.numpy(), weights[name].numpy())
    random = np.random.default_rng(args.seed)
    return model, draft, random.integers(0, model.config.vocab_size, (4, 32)).tolist()


def shakespeare(args: argparse.Namespace) -> tuple[Transformer, Transformer, Any, dict[str, Any]]:
    """A model on characters, a draft, prompts neither has seen, and how they were trained."""
    text = args.data.read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text], kind="char")
    ids = np.array(tokenizer.encode(text))
    ids, held_out = np.split(ids, [len(ids) * 9 // 10])
    shape = {"vocab_size": tokenizer.vocab_size, "max_positions": 256}
    config = ModelConfig.preset(
        "gpt-nano", hidden_size=args.width, num_decoder_layers=args.layers, num_heads=6, **shape
    )
    small = ModelConfig.preset("gpt-nano", num_decoder_layers=2, **shape)
    models, notes = [], {}
    for name, each, peak in (("model", config, 1e-3), ("draft", small, 3e-3)):
        model, losses = train(args, each, ids, peak)
        models.append(model)
        notes[name] = {"parameters": each.num_parameters(), "loss": float(np.mean(losses[-50:]))}
    starts = np.random.default_rng(args.seed).integers(0, len(held_out) - 64, 4)
    return *models, held_out[starts[:, None] + np.arange(64)].tolist(), notes


def train(
    args: argparse.Namespace, config: ModelConfig, ids: np.ndarray, peak: float
) -> tuple[Transformer, list[float]]:
    """Train a model on blocks of 128 characters at random places."""
    model = Transformer(config, seed=args.seed)
    step = llmcore.TrainStep(model, lr=0.0, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=1.0)
    schedule = Schedule(kind="cosine", lr=peak, min_lr=peak / 20, warmup_steps=args.steps // 10,
                        total_steps=args.steps)  # fmt: skip
    random = np.random.default_rng(args.seed)
    losses = []
    for number in range(1, args.steps + 1):
        starts = random.integers(0, len(ids) - 129, 8)
        batch = CausalLM()(ids[starts[:, None] + np.arange(129)])
        losses.append(step(batch, schedule(number)).loss)
    return model, losses


def compare(
    args: argparse.Namespace,
    model: Transformer,
    draft: Transformer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
) -> dict[str, dict[str, float]]:
    """Continue each prompt by each way in turn; then all together, in turns too."""
    ways = {
        "plain": (config, None),
        "ngram": (replace(config, speculate="ngram"), None),
        "draft": (replace(config, speculate="draft"), draft),
    }
    found = {}
    for batch, groups in (("alone", [[prompt] for prompt in prompts]), ("together", [prompts])):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        results: dict[str, list[Any]] = {way: [] for way in ways}
        for group in groups * args.turns:
            for way, (settings, guesser) in ways.items():
                start = time.perf_counter()
                results[way] += model.generate(group, settings, draft_model=guesser)
                seconds[way].append(time.perf_counter() - start)
        if any(written != results["plain"] for written in results.values()):
            raise SystemExit("speculative: a guess has changed a text")
        count = sum(len(result.ids) for result in results["plain"])
        for way, times in seconds.items():
            guessed = sum(result.guessed_tokens for result in results[way])
            ratios = [plain / own for plain, own in zip(seconds["plain"], times, strict=True)]
            found[f"{way} {batch}"] = {
                "tokens_per_second": round(count / len(times) / statistics.median(times), 1),
                "times_as_fast": round(statistics.median(ratios), 2),
                "slowest_turn": round(min(ratios), 2),
                "fastest_turn": round(max(ratios), 2),
                "tokens_a_pass": round(count / (count - guessed), 2),
            }
    return found


if __name__ == "__main__":
    main()
