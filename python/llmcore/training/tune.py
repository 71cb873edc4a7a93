"""Matrix products of a GPU, timed once and remembered: an act of its own, never done by the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmcore import _core
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError
from llmcore.model import Transformer
from llmcore.train_step import TrainStep
from llmcore.training.plan import fullest_batch, with_adapters
from llmcore.training.train_config import TrainConfig


class Tuned:
    """What `tuning` found.

    Attributes:
        timed: how many products were timed; those that were remembered are not timed again.
    """

    timed: int = 0


@contextmanager
def tuning() -> Iterator[Tuned]:
    """Time cuBLASLt's best few algorithms for each product that a GPU is asked for in here.

    The fastest is taken from then on, in this process and in later ones: a file in the user's
    cache directory remembers it, one for each GPU, version of cuBLASLt and version of llmcore.
    Where no file names a product, the library's own first choice is taken. Algorithms add in
    different orders, so that results before and after differ in their last bits.

    Raises:
        ConfigError: LLMCORE_CACHE_DIR is "off", or the directory cannot be written.
        DeviceError: this build has no CUDA back end.

    Example:
        ``with tuning() as tuned: step(batch)``
    """
    tuned = Tuned()
    _core.tune_products(True)
    try:
        yield tuned
    finally:
        tuned.timed = _core.tune_products(False)


def tune(model: ModelConfig, train: TrainConfig, device: str = "cuda") -> Tuned:
    """Tune the products of training steps: takes one, of random weights, for its shapes.

    Args:
        model: the architecture.
        train: batch, block, number format, objective, what is frozen and recomputed.
        device: "cuda" or "cuda:<index>".

    Raises:
        ConfigError: the device is the CPU, whose products have one algorithm; or as `tuning`.
    """
    if device == "cpu":
        raise ConfigError("tune: products of the CPU have one algorithm; the device must be cuda")
    network = Transformer(with_adapters(model, train), device=device)
    network.recompute = train.recompute
    if train.freeze:
        network.freeze(train.freeze)
    step = TrainStep(network, lr=0.0, dtype=train.dtype)
    with tuning() as tuned:
        step(fullest_batch(network.config, train))
    return tuned
