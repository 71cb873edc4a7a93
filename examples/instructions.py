"""Instructions: a decoder learns to answer, with the loss on the answers alone.

Instructions are JSON lines with "prompt" and "completion", here made up: upper case, last word,
sorted words. Half a minute on two cores; all of 200 new instructions are followed
to the letter.

    python examples/instructions.py
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from llmcore import GenerationConfig, Transformer
from llmcore.training.assemble import build_trainer
from llmcore.training.train_config import RunConfig

WORDS = ("apple", "bread", "cloud", "earth", "flame", "house", "light", "ocean", "river", "stone")


def example(draw: random.Random) -> dict[str, str]:
    """Make up an instruction with its answer."""
    words = draw.sample(WORDS, draw.randint(2, 4))
    task, answer = draw.choice(
        [
            ("Last word", words[-1]),
            ("Upper case", " ".join(words).upper()),
            ("Sorted", " ".join(sorted(words))),
        ]
    )
    return {"prompt": f"{task}: {' '.join(words)}\nAnswer:", "completion": f" {answer}"}


def main() -> None:
    """Train on instructions, and follow new ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("out/instructions"))
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    file, draw = args.out / "instructions.jsonl", random.Random(1)
    file.write_text("\n".join(json.dumps(example(draw)) for _ in range(10000)), encoding="utf-8")
    run = {
        "model": {"name": "gpt-nano", "max_positions": 96, "positions": "rope", "init_std": 0.05},
        "data": {"path": str(file), "tokenizer": "bpe", "vocab_size": 400, "max_length": 96},
        "train": {
            "steps": args.steps, "batch_size": 32, "lr": 1e-3,
            "out_dir": str(args.out), "overwrite": True,
        },
    }  # fmt: skip
    build_trainer(RunConfig.from_dict(run)).fit()

    model = Transformer.from_pretrained(args.out / "best")
    fresh = [example(draw) for _ in range(200)]
    results = model.generate([one["prompt"] for one in fresh], GenerationConfig(max_new_tokens=40))
    right = [found.text == one["completion"] for found, one in zip(results, fresh, strict=True)]
    for one, found in list(zip(fresh, results, strict=True))[:4]:
        print(one["prompt"] + found.text)
    print(f"{sum(right) / len(right):.0%} of {len(right)} instructions are followed")


if __name__ == "__main__":
    main()
