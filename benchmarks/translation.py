"""German to English on Multi30k from nothing: how good in how much time, beside PyTorch?

    python benchmarks/translation.py --engines llmcore,torch --epochs 5 --out translation.json

Both engines start from the same weights and see the same batches in the same order, in turns of
100 steps, so that other work on the machine hits both. Only training is timed. The weights of
either are decoded by llmcore, so that BLEU compares the training alone.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator, Sequence
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
from llmcore.objectives import Batch, Seq2Seq
from llmcore.tokenizer import Tokenizer
from llmcore.training.evaluate import evaluate
from llmcore.training.schedule import Schedule

SPECIAL = ["<pad>", "</s>"]
Pairs = list[tuple[list[int], list[int]]]


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    texts = {split: read_pairs(args.data, split) for split in ("train", "val", "test_2016_flickr")}
    tokenizer = Tokenizer.train(
        [text for pair in texts["train"] for text in pair],
        kind="bpe", vocab_size=args.vocab_size, special_tokens=SPECIAL,
    )  # fmt: skip
    pairs = {split: encode(tokenizer, texts[split]) for split in texts}
    config = make_config(args, tokenizer)
    objective = Seq2Seq(label_smoothing=0.1, **decoder_ids(tokenizer))
    batches = [
        objective(*zip(*group, strict=True))
        for epoch in range(args.epochs)
        for group in groups_of(pairs["train"], args.tokens, seed=args.seed, epoch=epoch)
    ][: args.steps]
    schedule = Schedule(kind="cosine", lr=args.lr, min_lr=args.lr / 20, warmup_steps=args.warmup,
                        total_steps=len(batches))  # fmt: skip
    rates = [schedule(step + 1) for step in range(len(batches))]
    report = new_report(
        args,
        __doc__,
        config=config.to_dict(),
        parameters=config.num_parameters(),
        steps=len(batches),
        engines={},
    )
    judge = Judge(config, tokenizer, texts, pairs)
    trainers = make_trainers(
        args.engines, config, seed=args.seed, betas=(0.9, 0.98), weight_decay=0.0, max_grad_norm=1.0
    )
    records = {engine: Record() for engine in trainers}
    progress: dict[str, list[dict[str, float]]] = {engine: [] for engine in trainers}
    for start in range(0, len(batches), args.turn):
        part = slice(start, start + args.turn)
        done = min(part.stop, len(batches))
        for engine, trainer in trainers.items():
            records[engine].train(trainer, batches[part], rates[part])
        if done < len(batches) and done // args.evaluate == start // args.evaluate:
            continue
        for engine, trainer in trainers.items():
            load_weights(judge.model, trainer.arrays())
            seconds = sum(turn["seconds"] for turn in records[engine].turns)
            scores = {"step": done, "seconds": seconds, **judge.validation()}
            if done == len(batches):
                scores |= judge.test(args.beams)
            progress[engine].append(scores)
            print(engine, " ".join(f"{key} {value:.4g}" for key, value in scores.items()
                                   if not isinstance(value, str)), flush=True)  # fmt: skip
        for engine, summary in compare(records).items():
            losses = smooth(records[engine].losses, args.turn)
            turns = records[engine].turns
            report["engines"][engine] = {
                **summary, "progress": progress[engine], "losses": losses, "turns": turns,
            }  # fmt: skip
        write_report(args.out, report)
    if args.plot:
        plot(report, args.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--engines", type=lambda text: text.split(","), default=["llmcore", "torch"],
        help="of llmcore, torch and torch-compile")  # fmt: skip
    add("--epochs", type=int, default=5)
    add("--steps", type=int, help="end after this many, for a trial")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--vocab-size", type=int, default=6000, help="of the BPE both languages share")
    add("--width", type=int, default=256)
    add("--layers", type=int, default=3, help="of each stack")
    add("--heads", type=int, default=4)
    add("--ffn", type=int, default=1024, help="inner width of the feed-forward networks")
    add("--dropout", type=float, default=0.1)
    add("--lr", type=float, default=1e-3, help="the peak of a cosine down to a twentieth")
    add("--warmup", type=int, default=200, help="steps")
    add("--tokens", type=int, default=512, help="a batch's most target tokens, padding included")
    add("--turn", type=int, default=100, help="steps of one engine before it is the other's turn")
    add("--evaluate", type=int, default=900, help="steps between evaluations")
    add("--beams", type=int, default=4, help="of the search on the test set")
    add("--data", type=Path, default=DATA / "multi30k")
    add("--out", default="translation.json", help="written at each evaluation")
    add("--plot", help="where to draw BLEU over training time, SVG or PNG")
    return parser.parse_args()


def read_pairs(directory: Path, split: str) -> list[tuple[str, str]]:
    """Return the German and English sentences of a split."""
    sides = []
    for language in ("de", "en"):
        with gzip.open(directory / f"{split}.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append([line.strip() for line in file])
    return list(zip(*sides, strict=True))


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> Pairs:
    """Return ids of source and target; the source ends in </s>, the objective ends the target."""
    sources, targets = (tokenizer.encode_batch(side) for side in zip(*texts, strict=True))
    return [
        ([*source, tokenizer.eos_id], target)
        for source, target in zip(sources, targets, strict=True)
    ]


def decoder_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"decoder_start_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}


def make_config(args: argparse.Namespace, tokenizer: Tokenizer) -> llmcore.ModelConfig:
    """Vaswani et al. 2017, small; norms first, which learns well from few steps of warmup."""
    return llmcore.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=args.width, num_heads=args.heads,
        num_encoder_layers=args.layers, num_decoder_layers=args.layers, ffn_size=args.ffn,
        max_positions=256, norm_placement="pre", positions="sinusoidal",
        embedding_scale=args.width**0.5, activation="relu", init_std=args.width**-0.5,
        embedding_dropout=args.dropout, residual_dropout=args.dropout, pad_id=tokenizer.pad_id,
        **decoder_ids(tokenizer),
    )  # fmt: skip


def groups_of(pairs: Pairs, tokens: int, *, seed: int, epoch: int) -> Iterator[Pairs]:
    """Cut an epoch into groups of pairs of like length, in random order.

    Pairs are sorted by target, then source length, so there is little padding; among equals the
    order is random, and so are the groups' contents from epoch to epoch.
    """
    random = np.random.default_rng((seed, epoch))
    order = sorted(random.permutation(len(pairs)),
                   key=lambda i: (len(pairs[i][1]), len(pairs[i][0])))  # fmt: skip
    groups: list[Pairs] = []
    for i in order:
        # The start or end token counts as one; the pair at hand is the longest so far.
        if not groups or (len(groups[-1]) + 1) * (len(pairs[i][1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(pairs[i])
    for i in random.permutation(len(groups)):
        yield groups[i]


class Judge:
    """Scores weights, whoever trained them, with one model of llmcore."""

    def __init__(
        self,
        config: llmcore.ModelConfig,
        tokenizer: Tokenizer,
        texts: dict[str, list[tuple[str, str]]],
        pairs: dict[str, Pairs],
    ) -> None:
        self.model = llmcore.Transformer(config)
        self.tokenizer, self.texts, self.pairs = tokenizer, texts, pairs
        objective = Seq2Seq(**decoder_ids(tokenizer))
        self.batches: list[Batch] = [
            objective(*zip(*group, strict=True))
            for group in groups_of(pairs["val"], 2048, seed=0, epoch=0)
        ]

    def validation(self) -> dict[str, float]:
        """Loss without smoothing, and BLEU of a greedy search."""
        loss = evaluate(self.model, self.batches).loss
        return {"val_loss": loss, "val_bleu": self.bleu("val", beams=1)[0]}

    def test(self, beams: int) -> dict[str, Any]:
        score, signature = self.bleu("test_2016_flickr", beams)
        return {"test_bleu": score, "test_beams": beams, "signature": signature}

    def bleu(self, split: str, beams: int) -> tuple[float, str]:
        """Return sacreBLEU's score of a split (13a, cased), and its signature."""
        from sacrebleu.metrics import BLEU

        settings = llmcore.GenerationConfig(max_new_tokens=80, num_beams=beams)
        sources = [source for source, _ in self.pairs[split]]
        outputs: list[str] = []
        for start in range(0, len(sources), 100):
            results = self.model.generate(sources[start : start + 100], settings)
            outputs += [self.tokenizer.decode(result.ids) for result in results]
        metric = BLEU()
        score = metric.corpus_score(outputs, [[target for _, target in self.texts[split]]])
        return score.score, str(metric.get_signature())


def plot(report: dict[str, Any], path: str) -> None:
    """Draw BLEU on the validation set over seconds of training."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for engine, result in report["engines"].items():
        points = [(point["seconds"], point["val_bleu"]) for point in result["progress"]]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=engine)
    axes.set(xlabel="seconds of training", ylabel="BLEU (validation, greedy)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
