"""One decoder that both writes and fills gaps: causal and masked language modelling in turn.

Two minutes on two cores. Half the batches predict the next character, the others hidden ones from
both sides. The validation loss of the mixture falls from 4.2 to 1.9.

    python examples/joint.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcore import (
    CausalLM,
    GenerationConfig,
    MaskedLM,
    Mixture,
    ModelConfig,
    Tokenizer,
    TrainConfig,
    Trainer,
    Transformer,
)
from llmcore.data import TokenDataset, shakespeare


def main() -> None:
    """Train on both objectives, go on from a text, and fill a gap in one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("out/joint"))
    args = parser.parse_args()

    text = shakespeare()
    tokenizer = Tokenizer.train([text], kind="char", special_tokens=["[MASK]"])
    assert tokenizer.mask_id is not None
    data = TokenDataset.from_ids(tokenizer.encode(text), name="Shakespeare").split(0.1)
    masked = MaskedLM(tokenizer.mask_id, vocab_size=tokenizer.vocab_size, stack="decoder")
    objective = Mixture([(CausalLM(), 1), (masked, 1)])

    config = ModelConfig.preset("gpt-nano", vocab_size=tokenizer.vocab_size)
    train = TrainConfig(steps=args.steps, out_dir=str(args.out), overwrite=True)
    model = Transformer(config, seed=1)
    Trainer(model, data, train, tokenizer=tokenizer, objective=objective).fit()

    model = Transformer.from_pretrained(args.out / "best")
    [written] = model.generate(["ROMEO:"], GenerationConfig(max_new_tokens=50, temperature=0.7))
    print("ROMEO:" + written.text)
    gap = "What, my lo[MASK]d, shall I speak?"
    fills = model.fill_mask(gap, top_k=3, bidirectional=True)
    print(gap, [(fill.token, round(fill.score, 3)) for fill in fills])


if __name__ == "__main__":
    main()
