"""A GPT of today's build on Shakespeare: byte-level BPE, rotary positions, RMSNorm, gated layers.

Two to four minutes on two cores. The validation loss, per token of 2048, falls from 7.6 to 4.19.

    python examples/bpe_gpt.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcore import GenerationConfig, ModelConfig, Tokenizer, TrainConfig, Trainer, Transformer
from llmcore.data import TokenDataset, shakespeare


def main() -> None:
    """Train a tokenizer and a model, and continue a text by sampling and by beams."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("out/bpe-gpt"))
    args = parser.parse_args()

    text = shakespeare()
    tokenizer = Tokenizer.train([text], kind="bpe", vocab_size=2048)
    data = TokenDataset.from_ids(tokenizer.encode(text), name="Shakespeare").split(0.1)

    config = ModelConfig.preset(
        "llama-tiny",
        vocab_size=tokenizer.vocab_size,
        hidden_size=192,
        num_decoder_layers=4,
        ffn_size=512,
        max_positions=128,
        bos_id=None,
        eos_id=tokenizer.eos_id,
    )
    train = TrainConfig(
        steps=args.steps,
        batch_size=16,
        block_size=128,
        lr=3e-3,
        eval_interval=100,
        out_dir=str(args.out),
        overwrite=True,
    )
    Trainer(Transformer(config, seed=1), data, train, tokenizer=tokenizer).fit()

    model = Transformer.from_pretrained(args.out / "best")
    for settings in (
        GenerationConfig(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=1),
        GenerationConfig(max_new_tokens=60, num_beams=4, no_repeat_ngram_size=3),
    ):
        [result] = model.generate(["JULIET:\n"], settings)
        print("JULIET:\n" + result.text + "\n---")


if __name__ == "__main__":
    main()
