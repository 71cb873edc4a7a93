"""Does one model trained on two objectives come as far on each as a model trained on it alone?

    python benchmarks/joint.py --steps 1250 --out joint.json

A decoder-only model on Shakespeare's characters learns to predict the next character (causal) and
hidden ones (masked, all positions seeing each other). Alone, each objective gets `--steps` batches;
together, drawn one to one, twice as many, so that either has seen as many of its own. Size, batch,
schedule and seed are the same for all three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, new_report, set_threads, smooth, write_report

import llmcore
from llmcore.objectives import Batch, CausalLM, MaskedLM, Mixture
from llmcore.tokenizer import Tokenizer
from llmcore.training.evaluate import evaluate
from llmcore.training.schedule import Schedule

MASK = "<mask>"


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    text = args.data.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10  # in order, as nanoGPT splits it
    tokenizer = Tokenizer.train([text], kind="char", special_tokens=[MASK])
    train, held_out = (np.array(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    config = llmcore.ModelConfig.preset(
        "gpt-nano", vocab_size=tokenizer.vocab_size, max_positions=args.length,
        hidden_size=args.width, num_decoder_layers=args.layers,
    )  # fmt: skip
    parts = {"causal": CausalLM(), "masked": masked(tokenizer, args.seed)}
    joint = Mixture([(part, 1.0) for part in parts.values()], seed=args.seed)
    judges = {"causal": CausalLM(), "masked": masked(tokenizer, args.seed + 1)}
    tests = {name: held_out_batches(judge, held_out, args.length) for name, judge in judges.items()}
    report = new_report(
        args, __doc__, config=config.to_dict(), parameters=config.num_parameters(), runs={}
    )
    for name, objective, steps in (
        *((name, part, args.steps) for name, part in parts.items()),
        ("joint", joint, 2 * args.steps),
    ):
        report["runs"][name] = run(args, config, batches_of(args, objective, train, steps), tests)
        print(name, report["runs"][name]["held_out"], flush=True)
        write_report(args.out, report)
    runs = report["runs"]
    report["joint_over_alone"] = {
        name: runs["joint"]["held_out"][name] / runs[name]["held_out"][name] for name in parts
    }
    print("joint over alone", report["joint_over_alone"])
    write_report(args.out, report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=1250, help="batches of each objective alone")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--width", type=int, default=128)
    add("--layers", type=int, default=4)
    add("--batch", type=int, default=16)
    add("--length", type=int, default=64)
    add("--lr", type=float, default=2e-3, help="the peak of a cosine down to a twentieth")
    add("--warmup", type=int, default=100, help="steps")
    add("--data", type=Path, default=DATA / "tinyshakespeare" / "input.txt")
    add("--out", default="joint.json", help="written after each run")
    return parser.parse_args()


def masked(tokenizer: Tokenizer, seed: int) -> MaskedLM:
    return MaskedLM(
        tokenizer.token_to_id(MASK), vocab_size=tokenizer.vocab_size, seed=seed, stack="decoder"
    )


def batches_of(
    args: argparse.Namespace, objective: Any, ids: np.ndarray, steps: int
) -> Iterator[Batch]:
    """Cut blocks at random places, the same for every objective as long as it goes on."""
    random = np.random.default_rng(args.seed)
    width = args.length + objective.lookahead
    for step in range(steps):
        starts = random.integers(0, len(ids) - args.length, args.batch)
        samples = step * args.batch + np.arange(args.batch)
        yield objective(ids[starts[:, None] + np.arange(width)], samples=samples)


def held_out_batches(objective: Any, ids: np.ndarray, length: int) -> list[Batch]:
    """Cut the held-out text into blocks; the masks are a function of seed and place: frozen."""
    count = (len(ids) - 1) // length
    starts = np.arange(count) * length
    blocks = ids[starts[:, None] + np.arange(length + objective.lookahead)]
    return [
        objective(blocks[i : i + 64], samples=np.arange(i, min(i + 64, count)))
        for i in range(0, count, 64)
    ]


def run(
    args: argparse.Namespace,
    config: llmcore.ModelConfig,
    batches: Iterator[Batch],
    tests: dict[str, list[Batch]],
) -> dict[str, Any]:
    """Train a model and return its losses, in training and held out."""
    batches = list(batches)
    schedule = Schedule(kind="cosine", lr=args.lr, min_lr=args.lr / 20, warmup_steps=args.warmup,
                        total_steps=len(batches))  # fmt: skip
    model = llmcore.Transformer(config, seed=args.seed)
    step = llmcore.TrainStep(model, lr=0.0, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=1.0)
    start = time.perf_counter()
    losses = [step(batch, schedule(number)).loss for number, batch in enumerate(batches, 1)]
    seconds = time.perf_counter() - start
    return {
        "steps": len(batches),
        "masked_steps": sum(batch.prefix_lengths is not None for batch in batches),
        "seconds": seconds,
        "losses": smooth(losses, 100),
        "held_out": {name: evaluate(model, test).loss for name, test in tests.items()},
    }


if __name__ == "__main__":
    main()
