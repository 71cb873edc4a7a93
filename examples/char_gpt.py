"""A character GPT on Shakespeare, which comes with the package.

36 seconds on two cores. The validation loss falls from 4.2 to 1.80; the sample has the form of a
play and words that are nearly English.

    python examples/char_gpt.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcore import GenerationConfig, ModelConfig, Tokenizer, TrainConfig, Trainer, Transformer
from llmcore.data import TokenDataset, shakespeare


def main() -> None:
    """Train, and continue a text with the best weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("out/char-gpt"))
    args = parser.parse_args()

    text = shakespeare()
    tokenizer = Tokenizer.train([text], kind="char")
    data = TokenDataset.from_ids(tokenizer.encode(text), name="Shakespeare").split(0.1)

    config = ModelConfig.preset("gpt-nano", vocab_size=tokenizer.vocab_size)
    train = TrainConfig(
        steps=args.steps,
        batch_size=12,
        block_size=64,
        out_dir=str(args.out),
        overwrite=True,
    )
    Trainer(Transformer(config, seed=1337), data, train, tokenizer=tokenizer).fit()

    model = Transformer.from_pretrained(args.out / "best")
    settings = GenerationConfig(max_new_tokens=300, temperature=0.8, seed=1, overflow="slide")
    for token in model.generate(["ROMEO:"], settings, stream=True):
        print(token.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
