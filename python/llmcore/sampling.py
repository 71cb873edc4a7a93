"""How training batches are drawn from a data set, as a function of (seed, step) alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .draws import Stream, mix, words
from .errors import DataError

if TYPE_CHECKING:
    from .data import TokenDataset

SampleMode = Literal["random", "epoch"]

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]


class BlockSampler:
    """Batches of blocks for training; batch n depends on the seed and n only.

    Two modes:

    * "random": block_size + 1 consecutive ids from independent uniform places, as nanoGPT draws
      them. Documents lie end to end, with their end-of-text token between.
    * "epoch": the data are cut into consecutive blocks and each is drawn once per epoch, in an
      order that depends on (seed, epoch), or in the order of the text with `shuffle=False`. A
      batch may hold the end of one epoch and the start of the next, so none is smaller. The
      tokens after the last whole block are left out.

    Attributes:
        step: Batches drawn so far: the cursor.

    Example:
        >>> from llmcore.data import TokenDataset
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
    ) -> None:
        """Prepare to draw from `dataset`.

        Args:
            dataset: Where to draw from.
            block_size: T, targets in a block.
            batch_size: B, blocks in a batch.
            seed: Any integer from 0 to 2**64 - 1.
            shuffle: Whether an epoch is in random order.
            mode: "random" or "epoch", see above.

        Raises:
            DataError: The data are smaller than a block, or an argument is out of range.
        """
        check_sizes(block_size, batch_size)
        if mode not in get_args(SampleMode):
            raise DataError(f"mode must be 'random' or 'epoch', got {mode!r}")
        if mode == "random" and not shuffle:
            raise DataError("shuffle=False needs mode='epoch'; random places have no order")
        if not 0 <= seed < 2**64:
            raise DataError(f"seed must be from 0 to 2**64 - 1, got {seed}")
        if len(dataset) < block_size + 1:
            raise DataError(
                f"{dataset.name} has {len(dataset)} tokens, but a block of {block_size} needs "
                f"{block_size + 1}; give more text or a smaller block size"
            )
        self.dataset = dataset
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.mode = mode
        self.step = 0
        self._blocks = (len(dataset) - 1) // block_size
        self._permutation: tuple[int, _Permutation] | None = None

    @property
    def epoch(self) -> float:
        """How many times the data have been gone through (on average, in "random" mode)."""
        return self.step * self.batch_size * self.block_size / (len(self.dataset) - 1)

    def next_batch(self) -> Int32Array:
        """Return the next batch, [B, T + 1] int32, and move the cursor on."""
        if self.mode == "random":
            places = len(self.dataset) - self.block_size
            draws = words(Stream.PLACES, self.seed, self.step, self.batch_size)
            starts = (draws % np.uint64(places)).astype(np.int64)
        else:
            starts = self._epoch_blocks() * self.block_size
        self.step += 1
        return self.dataset.gather(starts, self.block_size + 1)

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
        wrong = [
            f"{key} was {state.get(key)!r} and is {value!r}"
            for key, value in self._identity().items()
            if state.get(key) != value
        ]
        if wrong:
            raise DataError(
                f"cannot resume on {self.dataset.name}: {'; '.join(wrong)}; "
                "use the same data and settings, or start anew"
            )
        self.step = int(state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.fingerprint,
            "mode": self.mode,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
        }


class _Permutation:
    """A pseudo-random permutation of 0 … n - 1 in constant memory, from (seed, epoch).

    A Feistel network on pairs (l, r) of residues modulo a = ceil(sqrt(n)) permutes 0 … a² - 1
    (Luby & Rackoff 1988; over a modulus as Black & Rogaway 2002, "generalized Feistel"); results
    of n or more are sent through again ("cycle walking", ibid.) until they fall below n.
    """

    _ROUNDS = 6

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self._size = size
        self._side = np.uint64(math.isqrt(size - 1) + 1)
        self._keys = words(Stream.ORDER, seed, epoch, self._ROUNDS)

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


def check_sizes(block_size: int, batch_size: int) -> None:
    """Raise `DataError` unless both are positive."""
    for name, value in (("block_size", block_size), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")
