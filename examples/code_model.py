"""A model of Python code, trained on Python's own standard library, with a loop of one's own.

Ninety seconds on two cores. The validation loss, per token of 2048, falls from 7.6 to 4.5; what it
writes is indented and has the shape of code.

    python examples/code_model.py
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import numpy as np

from llmcore import CausalLM, GenerationConfig, ModelConfig, Tokenizer, TrainStep, Transformer
from llmcore.data import TokenDataset
from llmcore.training.evaluate import evaluate
from llmcore.training.schedule import Schedule


def main() -> None:
    """Train with `TrainStep`, measure with `evaluate`, save, and complete a function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--modules", type=int, default=120, help="of the standard library")
    parser.add_argument("--out", type=Path, default=Path("out/code-model"))
    args = parser.parse_args()

    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py"))[: args.modules]
    tokenizer = Tokenizer.train(files, kind="bpe", vocab_size=2048)
    texts = [file.read_text(encoding="utf-8") for file in files]
    ids = np.concatenate([[*row, tokenizer.eos_id] for row in tokenizer.encode_batch(texts)])
    train, held = TokenDataset.from_ids(ids, name="the standard library").split(0.05)

    config = ModelConfig.preset(
        "gpt-nano", vocab_size=tokenizer.vocab_size, max_positions=128, eos_id=tokenizer.eos_id
    )
    model, objective = Transformer(config, seed=1), CausalLM()
    model.tokenizer = tokenizer
    step = TrainStep(model, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=1.0)
    schedule = Schedule(lr=2e-3, min_lr=2e-4, warmup_steps=args.steps // 10, total_steps=args.steps)
    random = np.random.default_rng(1)
    for number in range(1, args.steps + 1):
        starts = random.integers(0, len(train) - 129, 16)
        result = step(objective(train.gather(starts, 129)), lr=schedule(number))
        if number % 100 == 0 or number in (1, args.steps):
            blocks = (held.gather(np.arange(i, i + 8) * 128, 129) for i in range(0, 32, 8))
            loss = evaluate(model, map(objective, blocks)).loss
            print(f"step {number}  loss {result.loss:.3f}  validation loss {loss:.3f}", flush=True)

    model.save_pretrained(args.out)
    [written] = model.generate(["def read("], GenerationConfig(max_new_tokens=80, temperature=0.5))
    print("def read(" + written.text)


if __name__ == "__main__":
    main()
