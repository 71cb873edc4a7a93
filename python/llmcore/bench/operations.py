"""GPT-2's operations by themselves as a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmcore.bench.workloads import FLOAT_BYTES, Measure
from llmcore.errors import ConfigError, did_you_mean
from llmcore.quantized import WEIGHT_BITS


@dataclass(frozen=True)
class Operation:
    """One operation of `Operations`.

    Attributes:
        kind: Which; see `Operations`.
        sizes: Its dimensions: M, K and N of a product, B, H, T and D of attention, rows and columns
            of a norm or a loss, and how many parameters AdamW updates.
    """

    kind: str
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The operation with its dimensions."""
        return f"{self.kind} {' x '.join(map(str, self.sizes))}"

    @property
    def dtype(self) -> str:
        """What is multiplied: the last word of the kind, or float32."""
        last = self.kind.rpartition("_")[2]
        return last if last in WEIGHT_BITS else "float32"

    def measure(self) -> Measure:
        """Return one call as a measure."""
        operations, floats = _COSTS[self.kind](*self.sizes)
        return Measure(self.name, 1.0, "", operations, FLOAT_BYTES * floats, self.dtype)


def _product(m: int, k: int, n: int) -> tuple[float, float]:
    return 2.0 * m * k * n, m * k + k * n + m * n


def _weight_gradient(m: int, k: int, n: int) -> tuple[float, float]:
    return 2.0 * m * k * n, m * k + 2 * k * n + m * n  # it is added to what is there


def _packed(bits: float) -> Any:
    return lambda m, k, n: (2.0 * m * k * n, m * k + k * n * bits / 32 + m * n)


def _attention(b: int, h: int, t: int, d: int) -> tuple[float, float]:
    return 4.0 * d * b * h * t * (t + 1) / 2, 4 * b * h * t * d  # the visible half alone


def _attention_both(b: int, h: int, t: int, d: int) -> tuple[float, float]:
    forward, floats = _attention(b, h, t, d)
    return 3.5 * forward, 3 * floats


_COSTS: dict[str, Any] = {
    "y": _product,
    "dx": _product,
    "dw": _weight_gradient,
    "y_bfloat16": _product,
    "dx_bfloat16": _product,
    "dw_bfloat16": _weight_gradient,
    **{f"y_packed_{name}": _packed(bits) for name, bits in WEIGHT_BITS.items() if bits < 32},
    "attention": _attention,
    "attention+grad": _attention_both,
    "layer_norm": lambda rows, width: (8.0 * rows * width, 2 * rows * width),
    "layer_norm+grad": lambda rows, width: (20.0 * rows * width, 5 * rows * width),
    "cross_entropy+grad": lambda rows, width: (6.0 * rows * width, 2 * rows * width),
    "adamw": lambda count: (14.0 * count, 7 * count),
}

#: The families `llmcore bench ops --only` chooses from, and their kinds.
FAMILIES = {
    "matmul": ("y", "dx", "dw"),
    "matmul_bfloat16": ("y_bfloat16", "dx_bfloat16", "dw_bfloat16"),
    "packed": ("y_packed_bfloat16", "y_packed_int8", "y_packed_int4"),
    "attention": ("attention", "attention+grad"),
    "layer_norm": ("layer_norm", "layer_norm+grad"),
    "cross_entropy": ("cross_entropy+grad",),
    "adamw": ("adamw",),
}
_LAYERS = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # K, N of GPT-2's linear layers
_HEAD = (768, 50257)
_HEAD_ROWS = 256
# More than the caches hold, and less than the 32 MB up to which glibc keeps what was freed: beyond,
# libraries that allocate their results are timed on page faults.
_ROWS = 8192
_LOSS_ROWS = 128
_PARAMETERS = 1 << 24


@dataclass(frozen=True)
class Operations:
    """GPT-2's operations by themselves, float32 unless their kind says otherwise.

    The three forms of a linear layer's product, y = x Wᵀ, dx = dy W and dW += dyᵀ x, of float32
    and, rounded first, of bfloat16; y of weights packed for inference; causal attention, forward
    and with its gradient; layer norm and cross-entropy with theirs; AdamW.

    Attributes:
        families: Some of `FAMILIES`.
        rows: M of the products; the head's are measured at 256 alone.
        lengths: T of attention, for 4 sequences of 12 heads, 64 wide.

    Raises:
        ConfigError: With every problem found.

    Example:
        >>> [operation.name for operation in Operations(["adamw"]).operations()]
        ['adamw 16777216']
    """

    families: Sequence[str] = tuple(FAMILIES)
    rows: Sequence[int] = (256,)
    lengths: Sequence[int] = (64, 1024)

    def __post_init__(self) -> None:
        problems = [
            f"only: must be some of {', '.join(FAMILIES)}, got {family!r}"
            + did_you_mean(family, FAMILIES)
            for family in self.families
            if family not in FAMILIES
        ]
        for name, values in (("rows", self.rows), ("lengths", self.lengths)):
            if not values or min(values) < 1:
                problems.append(f"{name}: must be numbers from 1 on, got {list(values)}")
        if problems:
            raise ConfigError.listing("bench ops", problems)

    @property
    def title(self) -> str:
        """The workload in a few words."""
        return "GPT-2's operations"

    def operations(self) -> list[Operation]:
        """Return every operation with its sizes."""
        found = []
        for family in self.families:
            for kind in FAMILIES[family]:
                found += [Operation(kind, sizes) for sizes in self._sizes(family)]
        return found

    def measures(self) -> list[Measure]:
        """Return each operation as a measure."""
        return [operation.measure() for operation in self.operations()]

    def _sizes(self, family: str) -> list[tuple[int, ...]]:
        if family in ("matmul", "matmul_bfloat16", "packed"):
            shapes = [(m, k, n) for m in self.rows for k, n in _LAYERS]
            head = [(_HEAD_ROWS, *_HEAD)] if _HEAD_ROWS in self.rows else []
            return [*shapes, *head]
        if family == "attention":
            return [(4, 12, length, 64) for length in self.lengths]
        if family == "layer_norm":
            return [(_ROWS, 768)]
        if family == "cross_entropy":
            return [(_LOSS_ROWS, _HEAD[1])]
        return [(_PARAMETERS,)]
