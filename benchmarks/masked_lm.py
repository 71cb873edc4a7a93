"""A small BERT from nothing on WikiText-2: as good as PyTorch's twin of it, and in what time?

    python benchmarks/masked_lm.py --engines llmcore,torch --seeds 3 --out masked_lm.json

The text is WikiText-2's validation split, its first nine tenths to learn from. For each seed both
engines start from the same weights and see the same blocks with the same tokens hidden, in turns of
100 steps; only training is timed. The hidden tokens of the held-out tenth are the same for all.
The floor to beat is the unigram model: how often each token occurs in the training text, plus one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    DATA,
    Record,
    compare,
    load_weights,
    make_trainers,
    new_report,
    set_threads,
    smooth,
    write_report,
)

import llmcore
from llmcore.objectives import Batch, MaskedLM
from llmcore.tokenizer import Tokenizer
from llmcore.training.evaluate import evaluate
from llmcore.training.schedule import Schedule

FROZEN = 1_000_000  # the seed of the held-out masks


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    # Its rare words are replaced already; what stands for them is never hidden.
    lines = args.data.read_text(encoding="utf-8").replace("<unk>", "[UNK]").splitlines()
    cut = len(lines) * 9 // 10
    parts = lines[:cut], lines[cut:]
    tokenizer = Tokenizer.train(parts[0], kind="wordpiece", vocab_size=args.vocab_size,
                                lowercase=True)  # fmt: skip
    train, held_out = (blocks_of(tokenizer, part, args.length) for part in parts)
    config = make_config(args, tokenizer)
    tests = batches_of(objective(tokenizer, FROZEN), held_out, np.arange(len(held_out)), 32)
    report = new_report(
        args,
        __doc__,
        config=config.to_dict(),
        parameters=config.num_parameters(),
        train_tokens=train.size,
        held_out_targets=sum(batch.targets.size for batch in tests),
        unigram_loss=unigram_loss(train, tests, tokenizer.vocab_size),
        runs=[],
    )
    print(f"unigram {report['unigram_loss']:.4f}")
    judge = llmcore.Transformer(config)
    for seed in range(args.seeds):
        records = train_all(args, config, tokenizer, train, seed, judge, tests)
        report["runs"].append({"seed": seed, "engines": records})
        report["summary"] = summarise(report["runs"])
        write_report(args.out, report)
    for engine, values in report["summary"].items():
        print(engine, " ".join(f"{key} {value:.4g}" for key, value in values.items()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--engines", type=lambda text: text.split(","), default=["llmcore", "torch"],
        help="of llmcore, torch and torch-compile")  # fmt: skip
    add("--seeds", type=int, default=3, help="runs of each engine")
    add("--epochs", type=int, default=2)
    add("--steps", type=int, help="end each run after this many, for a trial")
    add("--threads", type=int, default=2)
    add("--vocab-size", type=int, default=4000, help="of the WordPiece vocabulary")
    add("--width", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--dropout", type=float, default=0.0)
    add("--lr", type=float, default=5e-4, help="the peak; then linear down to nothing")
    add("--warmup", type=float, default=0.1, help="share of the steps")
    add("--batch", type=int, default=4, help="blocks")
    add("--length", type=int, default=128, help="tokens of a block")
    add("--turn", type=int, default=100, help="steps of one engine before it is the other's turn")
    add("--data", type=Path, default=DATA / "wikitext-2" / "valid.txt")
    add("--out", default="masked_lm.json", help="written after each seed")
    return parser.parse_args()


def blocks_of(tokenizer: Tokenizer, lines: Sequence[str], length: int) -> np.ndarray:
    """Return the text, line after line, as blocks of tokens, [n, length]; a rest is left out."""
    rows = tokenizer.encode_batch(lines, add_special_tokens=False)
    ids = np.array([index for row in rows for index in row])
    return ids[: len(ids) // length * length].reshape(-1, length)


def make_config(args: argparse.Namespace, tokenizer: Tokenizer) -> llmcore.ModelConfig:
    """BERT (Devlin et al. 2019), small and without token types.

    Initial weights of 1 / sqrt(C), larger than BERT's 0.02, suit so narrow a model.
    """
    return llmcore.ModelConfig.preset(
        "bert-base", vocab_size=tokenizer.vocab_size, hidden_size=args.width,
        num_encoder_layers=args.layers, num_heads=args.heads, max_positions=args.length,
        type_vocab_size=0, embedding_dropout=args.dropout, attention_dropout=0.0,
        residual_dropout=args.dropout, init_std=args.width**-0.5, pad_id=tokenizer.pad_id,
    )  # fmt: skip


def objective(tokenizer: Tokenizer, seed: int) -> MaskedLM:
    """15 % of the tokens, of which 80 % masked, 10 % replaced, 10 % kept."""
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id]
    return MaskedLM(
        tokenizer.mask_id, vocab_size=tokenizer.vocab_size, seed=seed, special_ids=special
    )


def batches_of(
    masked: MaskedLM, blocks: np.ndarray, order: np.ndarray, size: int, epoch: int = 0
) -> list[Batch]:
    """Return the blocks in this order as batches of up to `size`, with their tokens hidden."""
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [masked(blocks[group], samples=group, epoch=epoch) for group in groups]


def unigram_loss(train: np.ndarray, tests: Sequence[Batch], vocab_size: int) -> float:
    """Return the mean loss of the targets under their frequencies in training, plus one."""
    counts = np.bincount(train.reshape(-1), minlength=vocab_size) + 1.0
    targets = np.concatenate([batch.targets for batch in tests])
    return float(-np.log(counts[targets] / counts.sum()).mean())


def train_all(
    args: argparse.Namespace,
    config: llmcore.ModelConfig,
    tokenizer: Tokenizer,
    train: np.ndarray,
    seed: int,
    judge: llmcore.Transformer,
    tests: Sequence[Batch],
) -> dict[str, dict[str, Any]]:
    """Train every engine from one seed, in turns; return what each did."""
    random = np.random.default_rng(seed)
    batches = [
        batch
        for epoch in range(args.epochs)
        for batch in batches_of(
            objective(tokenizer, seed), train, random.permutation(len(train)), args.batch, epoch
        )
    ][: args.steps]
    schedule = Schedule(kind="linear", lr=args.lr, warmup_steps=int(args.warmup * len(batches)),
                        total_steps=len(batches))  # fmt: skip
    rates = [schedule(step + 1) for step in range(len(batches))]
    trainers = make_trainers(
        args.engines, config, seed=seed, betas=(0.9, 0.98), weight_decay=0.01, max_grad_norm=1.0
    )
    records = {engine: Record() for engine in trainers}
    for start in range(0, len(batches), args.turn):
        part = slice(start, start + args.turn)
        for engine, trainer in trainers.items():
            records[engine].train(trainer, batches[part], rates[part])
    results: dict[str, dict[str, Any]] = compare(records)
    for engine, trainer in trainers.items():
        load_weights(judge, trainer.arrays())
        loss = evaluate(judge, tests).loss
        losses = smooth(records[engine].losses, args.turn)
        results[engine] |= {"held_out_loss": loss, "losses": losses, "turns": records[engine].turns}
        print(f"seed {seed} {engine} held out {loss:.4f}, {results[engine]['seconds']:.1f} s",
              flush=True)  # fmt: skip
    return results


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over the seeds, and times against llmcore's."""
    summary = {}
    for engine in runs[0]["engines"]:
        results = [run["engines"][engine] for run in runs]
        losses = [result["held_out_loss"] for result in results]
        summary[engine] = {
            "held_out_loss": statistics.fmean(losses),
            "sd": statistics.stdev(losses) if len(losses) > 1 else 0.0,
            "seconds": sum(result["seconds"] for result in results),
        }
        if "llmcore" in runs[0]["engines"]:
            own = [run["engines"]["llmcore"]["held_out_loss"] for run in runs]
            summary[engine] |= {
                "largest_difference_to_llmcore": max(
                    abs(loss - other) for loss, other in zip(losses, own, strict=True)
                ),
                "median_time_over_llmcore": statistics.median(
                    result["median_time_over_llmcore"] for result in results
                ),
            }
    return summary


if __name__ == "__main__":
    main()
