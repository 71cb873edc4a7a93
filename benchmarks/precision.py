"""Does training in bfloat16 go the way of float32? A small GPT on Shakespeare, from several seeds.

    python benchmarks/precision.py --seeds 3 --out precision.json

The model, text and settings are those of examples/bpe_gpt.py. For each seed both formats start from
the same weights and see the same batches. What they are apart is set against what seeds of float32
are apart: the standard deviation over them of the same loss at the same step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import new_report, set_threads, smooth, write_report

from llmcore import ModelConfig, Tokenizer, TrainConfig, Trainer, Transformer
from llmcore.data import TokenDataset, shakespeare

FORMATS = ("float32", "bfloat16")


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    text = shakespeare()
    tokenizer = Tokenizer.train([text], kind="bpe", vocab_size=2048)
    data = TokenDataset.from_ids(tokenizer.encode(text), name="Shakespeare").split(0.1)
    runs = []
    for seed in range(args.seeds):
        run = {dtype: train(args, tokenizer, data, dtype, seed) for dtype in FORMATS}
        print(f"seed {seed}", {dtype: f"{run[dtype]['held_out'][-1]:.4f}" for dtype in FORMATS},
              flush=True)  # fmt: skip
        runs.append(run)
    report = new_report(args, __doc__, runs=runs, summary=summarise(runs))
    write_report(args.out, report)
    print(json.dumps(report["summary"], indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=500)
    add("--threads", type=int, default=2)
    add("--stretch", type=int, default=50, help="steps whose training losses are averaged")
    add("--out", default="precision.json")
    return parser.parse_args()


def train(
    args: argparse.Namespace, tokenizer: Tokenizer, data: Any, dtype: str, seed: int
) -> dict[str, Any]:
    """Return the losses of one run: of stretches of training, and held out."""
    config = ModelConfig.preset(
        "llama-tiny", vocab_size=tokenizer.vocab_size, hidden_size=192, num_decoder_layers=4,
        ffn_size=512, max_positions=128, bos_id=None, eos_id=tokenizer.eos_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainConfig(
            steps=args.steps, batch_size=16, block_size=128, lr=3e-3, eval_interval=100,
            log_interval=1, seed=seed, dtype=dtype, out_dir=folder, overwrite=True,
        )  # fmt: skip
        Trainer(Transformer(config, seed=seed), data, settings, tokenizer=tokenizer).fit()
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    losses = [record["loss"] for record in records if "loss" in record]
    return {
        "losses": [loss for _, loss in smooth(losses, args.stretch)],
        "held_out": [record["val_loss"] for record in records if "val_loss" in record],
    }


def summarise(runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return, at every point, the mean distance of the formats and the spread of the seeds."""
    summary = {}
    for curve in ("losses", "held_out"):
        single, half = (np.array([run[dtype][curve] for run in runs]) for dtype in FORMATS)
        summary[curve] = {
            "float32": single.mean(0).tolist(),
            "bfloat16_less_float32": (half - single).mean(0).tolist(),
            "largest_distance": float(np.abs(half - single).max()),
            "seeds_deviate_by": single.std(0, ddof=1).tolist() if len(runs) > 1 else None,
        }
    return summary


if __name__ == "__main__":
    main()
