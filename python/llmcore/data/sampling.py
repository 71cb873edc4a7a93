"""How training batches are drawn from a data set, as a function of (seed, step) alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from llmcore.draws import Stream, mix, words
from llmcore.errors import DataError

if TYPE_CHECKING:
    from llmcore.data.examples import ExampleDataset
    from llmcore.data.tokens import TokenDataset
    from llmcore.objectives import Batch

SampleMode = Literal["random", "epoch"]

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]


class Sample(NamedTuple):
    """What was drawn from a data set, as an objective takes it.

    Attributes:
        columns: the objective's arguments, in order: ids and perhaps lengths, or lists of ids.
        samples: [B] int64, which sample of the data each row is.
        epoch: how often the data had been gone through before. No two draws from the training data
            share both their epoch and their sample, so none is masked twice in the same way.
        types: segments of the first column's ids, where the data have them.
    """

    columns: tuple[Any, ...]
    samples: Int64Array
    epoch: int
    types: Any = None

    def batch(self, objective: Any) -> Batch:
        """Return what `objective` makes of it."""
        named = {} if self.types is None else {"types": self.types}
        made: Batch = objective(*self.columns, samples=self.samples, epoch=self.epoch, **named)
        return made


class BlockSampler:
    """Batches of blocks for training; batch n depends on the seed and n only.

    Two modes:

    * "random": block_size + 1 consecutive ids from independent uniform places, as nanoGPT draws
      them. Documents lie end to end, with their end-of-text token between. Every block drawn is a
      sample of its own.
    * "epoch": the data are cut into consecutive blocks and each is drawn once per epoch, in an
      order that depends on (seed, epoch), or in the order of the text with `shuffle=False`. A
      batch may hold the end of one epoch and the start of the next, so none is smaller. The
      tokens after the last whole block are left out.

    Attributes:
        step: Batches drawn so far: the cursor.

    Example:
        >>> from llmcore.data.tokens import TokenDataset
        >>> data = TokenDataset.from_ids(range(9))
        >>> sampler = BlockSampler(data, 4, 1, mode="epoch", shuffle=False)
        >>> sampler.next_batch().tolist(), sampler.next_batch().tolist()
        ([[0, 1, 2, 3, 4]], [[4, 5, 6, 7, 8]])
        >>> cursor = sampler.state_dict()
        >>> sampler.load_state_dict(cursor)
    """

    def __init__(
        self,
        dataset: TokenDataset,
        block_size: int,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        mode: SampleMode = "random",
        lookahead: int = 1,
        frame: tuple[int, int] | None = None,
    ) -> None:
        """Prepare to draw from `dataset`.

        Args:
            dataset: Where to draw from.
            block_size: T, positions of a block.
            batch_size: B, blocks in a batch.
            seed: Any integer from 0 to 2**64 - 1.
            shuffle: Whether an epoch is in random order.
            mode: "random" or "epoch", see above.
            lookahead: Ids a block has beyond its T positions: 1 where the next token is predicted.
            frame: The ids that a block begins and ends with, where the model expects some around
                every text; the rest of it comes from the data.

        Raises:
            DataError: The data are smaller than a block, or an argument is out of range.
        """
        check_sizes(block_size, batch_size)
        if mode not in get_args(SampleMode):
            raise DataError(f"mode must be 'random' or 'epoch', got {mode!r}")
        if mode == "random" and not shuffle:
            raise DataError("shuffle=False needs mode='epoch'; random places have no order")
        _check_seed(seed)
        self._stride = positions_within(block_size, frame)
        if len(dataset) < self._stride + lookahead:
            raise DataError(
                f"{dataset.name} has {len(dataset)} tokens, but a block of {block_size} needs "
                f"{self._stride + lookahead}; give more text or a smaller block size"
            )
        self.dataset = dataset
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.mode = mode
        self.lookahead = lookahead
        self.frame = frame
        self.step = 0
        self._blocks = (len(dataset) - lookahead) // self._stride
        self._permutation: tuple[int, _Permutation] | None = None

    @property
    def epoch(self) -> float:
        """How many times the data have been gone through (on average, in "random" mode)."""
        return self.step * self.batch_size * self._stride / (len(self.dataset) - self.lookahead)

    def next_batch(self) -> Int32Array:
        """Return the next batch, [B, T + lookahead] int32, and move the cursor on."""
        ids: Int32Array = self.next_sample().columns[0]
        return ids

    def next_sample(self) -> Sample:
        """Return the next batch, with the number of each row's block, and move the cursor on.

        In "random" mode the number is how many blocks were drawn before, in epoch 0. In "epoch"
        mode it is the place of the block in the data; in a batch across the end of an epoch the
        blocks of the next one are numbered on from the number of blocks.
        """
        drawn = self.step * self.batch_size
        if self.mode == "random":
            places = len(self.dataset) - self._stride - self.lookahead + 1
            draws = words(Stream.PLACES, self.seed, self.step, self.batch_size)
            starts = (draws % np.uint64(places)).astype(np.int64)
            epoch, samples = 0, drawn + np.arange(self.batch_size, dtype=np.int64)
        else:
            blocks = self._epoch_blocks()
            starts = blocks * self._stride
            epoch, place = divmod(drawn, self._blocks)
            later = (place + np.arange(self.batch_size, dtype=np.int64)) // self._blocks
            samples = blocks + later * self._blocks
        self.step += 1
        ids = self.dataset.gather(starts, self._stride + self.lookahead)
        return Sample((framed(ids, self.frame),), samples, epoch)

    def _epoch_blocks(self) -> Int64Array:
        """Return the blocks of the current step, [B] int64, across ends of epochs."""
        blocks = np.empty(self.batch_size, np.int64)
        done = 0
        while done < self.batch_size:
            epoch, place = divmod(self.step * self.batch_size + done, self._blocks)
            count = min(self.batch_size - done, self._blocks - place)
            places = np.arange(place, place + count)
            if self.shuffle:
                if self._permutation is None or self._permutation[0] != epoch:
                    self._permutation = epoch, _Permutation(self._blocks, self.seed, epoch)
                places = self._permutation[1](places)
            blocks[done : done + count] = places
            done += count
        return blocks

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor and what it is a cursor into, ready for JSON."""
        return {**self._identity(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move the cursor to where `state` was taken.

        Raises:
            DataError: `state` is of other data or of a sampler with other settings, so the
                batches after it would not be the ones it was on the way to.
        """
        # The first release knew no other lookahead than 1 and no frames, and did not say.
        known = {"lookahead": 1, "frame": None, **state}
        self.step = _step_of(known, self._identity(), self.dataset.name)

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.fingerprint,
            "lookahead": self.lookahead,
            "frame": None if self.frame is None else list(self.frame),
            "mode": self.mode,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
        }


class ExampleSampler:
    """Batches of examples for training; batch n depends on the seed and n only.

    Each example is drawn once an epoch. So that little is padding, a batch holds examples of
    similar length: the examples of an epoch, in random order, are cut into pools, each pool is
    sorted by length and cut into batches, and these come in random order. There are at least four
    pools, lest every epoch has the same batches; the last batch of the last one may be smaller.

    Attributes:
        step: Batches drawn so far: the cursor.

    Example:
        >>> from llmcore.data.examples import ExampleDataset
        >>> data = ExampleDataset.from_pairs([[1], [2, 3], [4]], [[5], [6, 7], [8]])
        >>> sampler = ExampleSampler(data, batch_size=2, seed=1)
        >>> samples = [sampler.next_sample() for _ in range(2)]
        >>> sorted(int(row) for sample in samples for row in sample.samples)
        [0, 1, 2]
    """

    #: Batches whose examples are sorted together, at most.
    POOL = 64

    def __init__(self, dataset: ExampleDataset, batch_size: int, seed: int = 0) -> None:
        """Prepare to draw from `dataset`.

        Args:
            dataset: Where to draw from.
            batch_size: B, examples in a batch.
            seed: Any integer from 0 to 2**64 - 1.

        Raises:
            DataError: There are no examples, or an argument is out of range.
        """
        check_sizes(1, batch_size)
        _check_seed(seed)
        if len(dataset) == 0:
            raise DataError(f"{dataset.name} has no examples")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.step = 0
        self._batches = -(-len(dataset) // batch_size)
        self._order: tuple[int, list[Int64Array]] | None = None

    @property
    def epoch(self) -> float:
        """How many times the data have been gone through."""
        return self.step / self._batches

    def next_sample(self) -> Sample:
        """Return the next batch of examples and move the cursor on."""
        epoch, place = divmod(self.step, self._batches)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._order_of(epoch)
        self.step += 1
        return self.dataset.take(self._order[1][place], epoch)

    def _order_of(self, epoch: int) -> list[Int64Array]:
        """Return the examples of every batch of an epoch."""
        size = self.batch_size
        shuffled = _Permutation(len(self.dataset), self.seed, epoch)(np.arange(len(self.dataset)))
        batches: list[Int64Array] = []
        width = size * min(self.POOL, max(1, self._batches // 4))
        for start in range(0, len(shuffled), width):
            pool = self.dataset.by_length(shuffled[start : start + width])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        order = _Permutation(len(batches), self.seed, epoch, Stream.BATCHES)(
            np.arange(len(batches))
        )
        return [batches[index] for index in order]

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor and what it is a cursor into, ready for JSON."""
        return {**self._identity(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move the cursor to where `state` was taken; errors as of `BlockSampler`."""
        self.step = _step_of(state, self._identity(), self.dataset.name)

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


def _step_of(state: dict[str, Any], identity: dict[str, Any], name: str) -> int:
    """Return the cursor in `state` if it is one into the data and settings of `identity`."""
    wrong = [
        f"{key} was {state.get(key)!r} and is {value!r}"
        for key, value in identity.items()
        if state.get(key) != value
    ]
    if wrong:
        raise DataError(
            f"cannot resume on {name}: {'; '.join(wrong)}; "
            "use the same data and settings, or start anew"
        )
    return int(state["step"])


class _Permutation:
    """A pseudo-random permutation of 0 … n - 1 in constant memory, from (seed, epoch).

    A Feistel network on pairs (l, r) of residues modulo a = ceil(sqrt(n)) permutes 0 … a² - 1
    (Luby & Rackoff 1988; over a modulus as Black & Rogaway 2002, "generalized Feistel"); results
    of n or more are sent through again ("cycle walking", ibid.) until they fall below n.
    """

    _ROUNDS = 6

    def __init__(self, size: int, seed: int, epoch: int, stream: Stream = Stream.ORDER) -> None:
        self._size = size
        self._side = np.uint64(math.isqrt(size - 1) + 1)
        self._keys = words(stream, seed, epoch, self._ROUNDS)

    def __call__(self, places: Int64Array) -> Int64Array:
        """Return where each of `places` [n] is sent, [n] int64."""
        values = self._network(places.astype(np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: UInt64Array) -> UInt64Array:
        left: UInt64Array = values // self._side
        right: UInt64Array = values % self._side
        for key in self._keys:
            left, right = right, (left + mix(right + key) % self._side) % self._side
        joined: UInt64Array = left * self._side + right
        return joined


def positions_within(block_size: int, frame: tuple[int, int] | None) -> int:
    """Return the positions of a block that its frame, if any, leaves to the data.

    Raises:
        DataError: There are none.
    """
    if frame is None:
        return block_size
    if block_size <= len(frame):
        raise DataError(
            f"block_size must be more than the {len(frame)} tokens around every text, got"
            f" {block_size}"
        )
    return block_size - len(frame)


def framed(
    ids: Int32Array, frame: tuple[int, int] | None, lengths: Int32Array | None = None
) -> Int32Array:
    """Return rows [B, T] with an id before each, and one after as many ids as are real.

    Example:
        >>> framed(np.array([[5, 6], [7, 0]], np.int32), (1, 2), np.array([2, 1])).tolist()
        [[1, 5, 6, 2], [1, 7, 2, 0]]
    """
    if frame is None:
        return ids
    rows = np.pad(ids, ((0, 0), (1, 1)))
    rows[:, 0] = frame[0]
    ends = ids.shape[1] if lengths is None else lengths
    rows[np.arange(len(rows)), 1 + np.asarray(ends)] = frame[1]
    return rows


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise DataError(f"seed must be from 0 to 2**64 - 1, got {seed}")


def check_sizes(block_size: int, batch_size: int) -> None:
    """Raise `DataError` unless both are positive."""
    for name, value in (("block_size", block_size), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")
