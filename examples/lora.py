"""Low-rank adapters: a model of Shakespeare is adapted to Python code by training 2 % more weights.

A minute and a half on two cores. On code the loss falls from 7.6 to 4.3 while the model's own
weights stay as they are; the adapter, a file of 400 kB, is then merged into them.

    python examples/lora.py
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

from llmcore import (
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    Tokenizer,
    TrainConfig,
    Trainer,
    Transformer,
)
from llmcore.data import TokenDataset, shakespeare


def main() -> None:
    """Pretrain, adapt, save the adapter, load it into the model it belongs to, and merge it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("out/lora"))
    args = parser.parse_args()

    play, library = shakespeare(), Path(sysconfig.get_path("stdlib"))
    code = "\n".join(file.read_text("utf-8") for file in sorted(library.glob("*.py"))[:40])
    tokenizer = Tokenizer.train([play, code], kind="bpe", vocab_size=512)
    plays, programs = (
        TokenDataset.from_ids(tokenizer.encode(text), name=name).split(0.05)
        for text, name in ((play, "Shakespeare"), (code, "the standard library"))
    )

    config = ModelConfig.preset("gpt-nano", vocab_size=tokenizer.vocab_size)
    base = TrainConfig(steps=args.steps, out_dir=str(args.out / "base"), overwrite=True)
    Trainer(Transformer(config, seed=1), plays, base, tokenizer=tokenizer).fit()

    model = Transformer.from_pretrained(args.out / "base" / "best")
    model.add_lora(LoraConfig(rank=8, alpha=16, targets=["q", "k", "v", "out", "up", "down"]))
    adapt = base.replace(steps=max(args.steps // 2, 1), out_dir=str(args.out / "adapted"))
    Trainer(model, programs, adapt, tokenizer=tokenizer).fit()
    model.save_adapter(args.out / "adapter", base_model=str(args.out / "base" / "best"))

    model = Transformer.from_pretrained(args.out / "base" / "best")
    model.load_adapter(args.out / "adapter")
    model.merge_lora()
    model.save_pretrained(args.out / "merged")
    [written] = model.generate(["def"], GenerationConfig(max_new_tokens=80, temperature=0.6))
    print("def" + written.text)


if __name__ == "__main__":
    main()
