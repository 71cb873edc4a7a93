"""BERT from nothing: a masked language model, and a classifier fine-tuned from it.

It reads captions in German and English with words hidden, then learns from 100 labelled sentences
to tell the languages apart. A minute and a quarter on two cores; the masked loss falls from 7.8 to
3.8, and all of 1000 sentences that it has not seen are told right. Norms before the layers and
rotary positions make it learn much sooner than the BERT of 2018 did.

    python examples/bert.py
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

from llmcore import Transformer
from llmcore.training.assemble import build_trainer
from llmcore.training.train_config import RunConfig


def main() -> None:
    """Train, fill a mask, fine-tune, classify."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/multi30k"))
    parser.add_argument("--out", type=Path, default=Path("out/bert"))
    args = parser.parse_args()

    texts = {
        name: gzip.decompress((args.data / f"{name}.gz").read_bytes()).decode().splitlines()
        for name in ("train.de", "train.en", "val.de", "val.en")
    }
    args.out.mkdir(parents=True, exist_ok=True)
    captions, labelled = args.out / "captions.txt", args.out / "labelled.tsv"
    pairs = zip(texts["train.de"], texts["train.en"], strict=True)
    captions.write_text("\n".join(line for pair in pairs for line in pair), encoding="utf-8")
    rows = [f"{line}\t{code}" for code in ("de", "en") for line in texts[f"train.{code}"][:50]]
    labelled.write_text("\n".join(rows), encoding="utf-8")

    def train(model: dict[str, Any], data: dict[str, Any], **settings: Any) -> Transformer:
        settings |= {"dropout": 0.0, "overwrite": True, "sample_tokens": 0, "eval_interval": 100}
        run = {"model": model, "data": data}
        build_trainer(RunConfig.from_dict({**run, "train": settings})).fit()
        return Transformer.from_pretrained(Path(settings["out_dir"]) / "best")

    size = {
        "hidden_size": 128, "num_encoder_layers": 3, "num_heads": 4, "positions": "rope",
        "norm_placement": "pre", "final_norm": True, "init_std": 0.05,
    }  # fmt: skip
    model = train(
        {"name": "bert-base", "max_positions": 64, **size},
        {"path": str(captions), "vocab_size": 2048},
        steps=args.steps, batch_size=32, lr=2e-3, out_dir=str(args.out / "masked"),
    )  # fmt: skip
    for text in ("A dog [MASK] in the snow.", "Ein Hund [MASK] im Schnee."):
        print(text, [fill.token for fill in model.fill_mask(text, top_k=4)])

    model = train(
        {"name": str(args.out / "masked")}, {"path": str(labelled)},
        objective="classification", steps=min(args.steps, 60), batch_size=16, lr=3e-4,
        out_dir=str(args.out / "language"),
    )  # fmt: skip
    found = {code: model.classify(texts[f"val.{code}"][:500]) for code in ("de", "en")}
    right = [one.label == code for code in found for one in found[code]]
    print(f"{sum(right) / len(right):.1%} of {len(right)} sentences are told right")


if __name__ == "__main__":
    main()
