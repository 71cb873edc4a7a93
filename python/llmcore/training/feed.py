"""How data reach an objective: what a user hands in, training's sampler, evaluation's batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from llmcore.config import ModelConfig
from llmcore.data.examples import ExampleDataset, holds_examples
from llmcore.data.sampling import ExampleSampler, Sample
from llmcore.data.shards import load_index
from llmcore.data.tokens import BlockSampler, TokenDataset
from llmcore.errors import ConfigError, DataError
from llmcore.objectives import Batch
from llmcore.training.tasks import unsmoothed
from llmcore.training.train_config import TrainConfig

#: What a model can be trained on.
Dataset = TokenDataset | ExampleDataset


class Sampler(Protocol):
    """Draws batches in an order that depends on its seed and its cursor alone."""

    def next_sample(self) -> Sample:
        """Draw a batch and move the cursor on."""

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move the cursor to where `state` was taken."""


def resolve_data(data: Any) -> tuple[Dataset, Dataset | None]:
    """Turn what a user may hand in as data into (training, validation or None).

    Example:
        >>> train, val = resolve_data(([1, 2, 3], [4, 5]))
        >>> len(train), len(val)
        (3, 2)
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ConfigError(f"data must be one set or a pair (train, val), got {len(data)}")
        train, val = data
        return resolve_data(train)[0], None if val is None else resolve_data(val)[0]
    if isinstance(data, (TokenDataset, ExampleDataset)):
        return data, None
    if isinstance(data, (str, Path)):
        index = load_index(Path(data))
        kind = ExampleDataset if holds_examples(index) else TokenDataset
        splits = {name.partition("-")[0] for name in index["splits"]}
        return kind.open(data), kind.open(data, "val") if "val" in splits else None
    return TokenDataset.from_ids(data), None


def make_sampler(
    data: Dataset, config: TrainConfig, objective: Any, frame: tuple[int, int] | None = None
) -> Sampler:
    """Return what draws the batches of a run.

    Args:
        data: What to draw from.
        config: Sizes, seed and order.
        objective: What the batches are for.
        frame: The ids that blocks begin and end with (`llmcore.training.tasks.block_frame`).

    Raises:
        DataError: There are too few data for one batch.
    """
    if isinstance(data, ExampleDataset):
        return ExampleSampler(data, config.batch_size, config.seed)
    return BlockSampler(
        data,
        config.block_size,
        config.batch_size,
        config.seed,
        mode=config.sampling,  # type: ignore[arg-type]  # one of the two, checked there
        lookahead=_lookahead(objective),
        frame=frame,
    )


def eval_batches(
    data: Dataset,
    objective: Any,
    *,
    block_size: int,
    batch_size: int,
    max_batches: int = 0,
    frame: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yield the same batches every time: epoch 0 of fixed samples.

    Labels are not smoothed, so that the loss is the model's, and comparable.

    Args:
        data: What to evaluate on.
        objective: What makes the batches.
        block_size: Positions of a block; examples have their own lengths.
        batch_size: Blocks or examples in a batch.
        max_batches: At most so many, spread over the data; 0 for all.
        frame: As of `make_sampler`.
    """
    most = max_batches or None
    if isinstance(data, ExampleDataset):
        samples = data.eval_batches(batch_size, most)
    else:
        samples = data.eval_batches(
            block_size, batch_size, most, lookahead=_lookahead(objective), frame=frame
        )
    plain = unsmoothed(objective)
    return (sample.batch(plain) for sample in samples)


def sequence_lengths(data: Dataset, config: TrainConfig, model: ModelConfig) -> tuple[int, int]:
    """Return the mean and the largest number of positions of a row, in the longer of two stacks."""
    if isinstance(data, TokenDataset):
        return config.block_size, config.block_size
    lengths = data.lengths
    # A decoder alone reads prompt and completion one after the other.
    rows = lengths.sum(axis=1) if model.kind == "decoder" else lengths.max(axis=1)
    return max(1, round(float(np.mean(rows)))), int(rows.max())


def check_data(data: Dataset, config: TrainConfig, model: ModelConfig) -> None:
    """Refuse data that do not fit the model.

    Raises:
        ConfigError: Blocks or texts are longer than its positions.
        DataError: Ids lie outside its vocabulary, or there are no examples.
    """
    if isinstance(data, ExampleDataset) and len(data) == 0:
        raise DataError(f"{data.name} has no examples")
    limit = most_positions(model)
    longest = sequence_lengths(data, config, model)[1]
    if limit is not None and longest > limit:
        if isinstance(data, TokenDataset):
            raise ConfigError(
                f"block_size {longest} is more than the model's max_positions {limit}; lower the"
                " one or raise the other"
            )
        raise ConfigError(
            f"{data.name} has texts of {longest} tokens, more than the model's max_positions"
            f" {limit}; cut them (max_length) or give the model more"
        )
    data.check_vocab(model.vocab_size)


def most_positions(model: ModelConfig) -> int | None:
    """Return the longest sequence a model takes, or None where that is as long as one likes."""
    return None if model.positions in ("relative", "none") else model.max_positions


def describe_size(data: Dataset) -> str:
    """Say how much there is.

    Example:
        >>> describe_size(TokenDataset.from_ids([1, 2, 3]))
        '3 tokens'
    """
    return f"{len(data):,} {'tokens' if isinstance(data, TokenDataset) else 'examples'}"


def _lookahead(objective: Any) -> int:
    return cast(int, getattr(objective, "lookahead", 1))
