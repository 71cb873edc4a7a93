"""The architecture of a model, whole: `ModelConfig`, its presets and its table of parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmcore.errors import ConfigError, did_you_mean
from llmcore.presets import PRESETS, scales_of
from llmcore.validation import Check, build, told_at_once

Kind = Literal["decoder", "encoder", "encoder-decoder"]

# The default of a field that is computed from other fields. Typed Any so that the field itself
# keeps the type it has after construction: nobody who reads a config has to handle None.
_DERIVED: Any = None


@told_at_once(build)
@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was trained on.

    Attributes:
        type: "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595).
            "llama3" keeps high frequencies, divides low ones, and blends between (Llama 3.1).
            "yarn" blends by number of rotations and rescales attention (arXiv:2309.00071).
        factor: Ratio of the stretched to the original length, at least 1.
        original_max_positions: Length the model was trained on; needed by "llama3" and "yarn".
        low_freq_factor: llama3: wavelengths above original_max_positions / this are divided.
        high_freq_factor: llama3: wavelengths below original_max_positions / this are kept.
        beta_fast: yarn: dimensions rotating more often than this over the original length are kept.
        beta_slow: yarn: dimensions rotating less often than this are divided by `factor`.
        attention_factor: yarn: multiplies cos and sin. None means 0.1 ln(factor) + 1.

    Raises:
        ConfigError: with every problem found.

    Example:
        >>> RopeScaling(type="linear", factor=2.0).attention_factor
        1.0
    """

    type: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = _DERIVED

    def __post_init__(self) -> None:
        check = Check(self, optional={"attention_factor"})
        check.at_least(1, "factor")
        check.at_least(0, "original_max_positions")
        check.positive("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        check.derive(
            "attention_factor",
            ("type", "factor"),
            # YaRN, section 3.4: sqrt(1/t) = 0.1 ln(s) + 1.
            lambda: 0.1 * math.log(self.factor) + 1.0 if self.type == "yarn" else 1.0,
        )
        check.positive("attention_factor")
        check.rule(
            ("original_max_positions", "type"),
            lambda: self.type == "linear" or self.original_max_positions >= 1,
            lambda: f"at least 1 for type {self.type!r}",
        )
        check.rule(
            ("high_freq_factor", "low_freq_factor"),
            lambda: self.high_freq_factor > self.low_freq_factor,
            lambda: f"more than low_freq_factor = {self.low_freq_factor:g}",
        )
        check.rule(
            ("beta_fast", "beta_slow"),
            lambda: self.beta_fast > self.beta_slow,
            lambda: f"more than beta_slow = {self.beta_slow:g}",
        )
        check.done()


#: The linear layers an adapter may stand beside: those of every attention and feed-forward network.
LORA_TARGETS = ("q", "k", "v", "out", "gate", "up", "down")


@told_at_once(build)
@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside linear layers: y = W x + (alpha / rank) B A x (Hu et al. 2021).

    Attributes:
        rank: r, rows of A [r, in] and columns of B [out, r].
        alpha: Scale of the adapters, before it is divided by the rank. Default: rank.
        dropout: Probability, on the adapters' input.
        targets: Linear layers that have one, in every layer and kind of attention; some of
            `LORA_TARGETS`.

    Raises:
        ConfigError: with every problem found.

    Example:
        >>> LoraConfig(rank=4).alpha
        4.0
    """

    rank: int
    alpha: float = _DERIVED
    dropout: float = 0.0
    targets: Sequence[str] = ("q", "v")

    def __post_init__(self) -> None:
        check = Check(self, optional={"alpha"})
        check.at_least(1, "rank")
        check.derive("alpha", ("rank",), lambda: float(self.rank))
        check.positive("alpha")
        check.probability("dropout")
        check.require(
            "targets",
            lambda names: len(names) > 0 and set(names) <= set(LORA_TARGETS),
            f"some of {', '.join(LORA_TARGETS)}",
        )
        check.done()


@told_at_once(build)
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a decoder, an encoder, or both; weights must match it exactly.

    Frozen. Fields whose default is computed ("default: …" below) hold the computed value after
    construction. `replace` makes a changed copy.

    Attributes:
        vocab_size: V, rows of the token table.
        hidden_size: C, width of the residual stream.
        num_encoder_layers: Layers of the bidirectional stack; 0 makes a decoder-only model.
        num_decoder_layers: Layers of the causal stack; 0 makes an encoder-only model.
        num_heads: H, query heads.
        num_kv_heads: Hkv, key and value heads, a divisor of H. Default: H.
        head_dim: D, width of a head. Default: C / H.
        ffn_size: F, inner width of the feed-forward network. Default: 4 C.
        max_positions: Longest sequence, in tokens.
        norm: "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019).
        norm_eps: Added to the variance or mean square under the root.
        norm_placement: "pre", x + f(norm(x)), or "post", norm(x + f(x)).
        final_norm: Whether each stack ends in a norm.
        embedding_norm: Whether the embedding sum is normalised before the first layer.
        qk_norm: Whether each query and key head is RMS-normalised before the rotation.
        positions: "learned", "sinusoidal", "rope", "relative" (T5's buckets), or "none".
        position_offset: Row of the learned table that position 0 uses; the table has
            max_positions + position_offset rows.
        type_vocab_size: Rows of the token type table; 0 for none.
        embedding_scale: Token embeddings are multiplied by this.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Stretching of the rotary frequencies, or None.
        rotary_dim: Leading dimensions of a head that rotate. Default: D.
        rope_interleaved: Rotate pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2).
        relative_buckets: Rows of the relative position table.
        relative_max_distance: Distance from which on all share the last bucket.
        attention_scale: Multiplies q·k. Default: 1 / sqrt(D).
        attention_softcap: Scores become c tanh(score / c); 0 for none.
        sliding_window: A causal query sees this many latest keys, itself included; 0 for all.
        activation: "gelu" (erf), "gelu_tanh", "relu" or "silu".
        gated_ffn: down(act(gate(x)) * up(x)) instead of down(act(up(x))).
        attention_bias: Whether q, k and v have biases.
        attention_out_bias: Whether the attention output projection has a bias.
        ffn_bias: Whether the feed-forward projections have biases.
        norm_bias: Whether norms have a bias. Default: True for "layer"; "rms" never has one.
        tie_embeddings: Whether the head uses the token table.
        head_bias: Whether logits have a bias.
        head_transform: Whether the head starts with linear, activation, norm (BERT).
        head_scale: Hidden states are multiplied by this before the head.
        pooler: Whether tanh(linear(first token)) precedes the classifier.
        num_labels: Classes of the classifier; 0 for none.
        label_names: What the classes are called, one name each; none: they have only numbers.
        embedding_dropout: Probability, on the embedding sum.
        attention_dropout: Probability, on attention weights.
        residual_dropout: Probability, on what a sublayer adds to the residual stream.
        ffn_dropout: Probability, on the inner activations of the feed-forward network.
        init_std: Standard deviation of initial weights.
        bos_id: Id of the beginning-of-sequence token, or None.
        eos_id: Id of the end-of-sequence token, or None.
        pad_id: Id of the padding token, or None.
        decoder_start_id: Id a decoder beside an encoder starts from, or None.
        forced_bos_id: Id that every generated text begins with, or None.
        forced_eos_id: Id that a generated text ends with where it reaches its longest, or None.
        suppressed_ids: Ids that are never generated.
        right_to_left: Whether texts are read from their end to their beginning, as the objective
            `ReversedLM` trains it; generation and scoring turn them round.
        lora: Low-rank adapters beside the linear layers, or None.

    Raises:
        ConfigError: with every problem found, one line each.

    Example:
        >>> config = ModelConfig(vocab_size=65, hidden_size=32, num_decoder_layers=2, num_heads=4)
        >>> config.head_dim, config.ffn_size, config.kind
        (8, 128, 'decoder')
    """

    vocab_size: int
    hidden_size: int
    num_encoder_layers: int = 0
    num_decoder_layers: int = 0
    num_heads: int
    num_kv_heads: int = _DERIVED
    head_dim: int = _DERIVED
    ffn_size: int = _DERIVED
    max_positions: int = 1024
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_placement: Literal["pre", "post"] = "pre"
    final_norm: bool = True
    embedding_norm: bool = False
    qk_norm: bool = False
    positions: Literal["learned", "sinusoidal", "rope", "relative", "none"] = "learned"
    position_offset: int = 0
    type_vocab_size: int = 0
    embedding_scale: float = 1.0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int = _DERIVED
    rope_interleaved: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    attention_scale: float = _DERIVED
    attention_softcap: float = 0.0
    sliding_window: int = 0
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu_tanh"
    gated_ffn: bool = False
    attention_bias: bool = True
    attention_out_bias: bool = True
    ffn_bias: bool = True
    norm_bias: bool = _DERIVED
    tie_embeddings: bool = True
    head_bias: bool = False
    head_transform: bool = False
    head_scale: float = 1.0
    pooler: bool = False
    num_labels: int = 0
    label_names: Sequence[str] = ()
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    ffn_dropout: float = 0.0
    init_std: float = 0.02
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    decoder_start_id: int | None = None
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    suppressed_ids: Sequence[int] = ()
    right_to_left: bool = False
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        check = Check(self, optional=_COMPUTED)
        check.at_least(1, "vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_dim")
        check.at_least(1, "ffn_size", "max_positions", "relative_max_distance")
        check.at_least(2, "rotary_dim", "relative_buckets")
        check.at_least(0, "num_encoder_layers", "num_decoder_layers", "position_offset")
        for stack in ("num_encoder_layers", "num_decoder_layers"):
            check.require(stack, lambda layers: layers <= 10_000, "at most 10000")
        check.at_least(0, "type_vocab_size", "sliding_window", "num_labels", "attention_softcap")
        check.positive("norm_eps", "embedding_scale", "rope_theta", "attention_scale")
        check.positive("head_scale", "init_std")
        check.probability("embedding_dropout", "attention_dropout")
        check.probability("residual_dropout", "ffn_dropout")
        for name in TOKEN_ID_FIELDS:
            token = getattr(self, name)
            check.rule(
                (name, "vocab_size"),
                lambda token=token: token is None or 0 <= token < self.vocab_size,  # type: ignore[misc]
                lambda: f"an id in [0, vocab_size = {self.vocab_size}), or None",
            )
        if self.head_dim is None:
            check.rule(
                ("hidden_size", "num_heads"),
                lambda: self.hidden_size % self.num_heads == 0,
                lambda: f"a multiple of num_heads = {self.num_heads}, or head_dim given",
            )
        check.rule(
            ("suppressed_ids", "vocab_size"),
            lambda: all(0 <= token < self.vocab_size for token in self.suppressed_ids),
            lambda: f"ids in [0, vocab_size = {self.vocab_size})",
        )
        for name, (sources, compute) in _COMPUTED.items():
            check.derive(name, sources, lambda compute=compute: compute(self))  # type: ignore[misc]
        self._check_relations(check)
        check.done()

    def _check_relations(self, check: Check) -> None:
        check.rule(
            ("num_decoder_layers", "num_encoder_layers"),
            lambda: self.num_encoder_layers + self.num_decoder_layers >= 1,
            lambda: "at least 1 where num_encoder_layers is 0",
        )
        check.rule(
            ("num_kv_heads", "num_heads"),
            lambda: self.num_heads % self.num_kv_heads == 0,
            lambda: f"a divisor of num_heads = {self.num_heads}",
        )
        check.rule(
            ("norm_bias", "norm"),
            lambda: self.norm == "layer" or not self.norm_bias,
            lambda: "False with norm 'rms'",
        )
        if self.positions == "rope":
            check.rule(
                ("rotary_dim", "head_dim"),
                lambda: self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
                lambda: f"an even number up to head_dim = {self.head_dim}",
            )
        check.rule(
            ("label_names", "num_labels"),
            lambda: len(set(self.label_names)) in (0, self.num_labels),
            lambda: f"none, or num_labels = {self.num_labels} different names",
        )
        check.rule(
            ("rope_scaling", "positions"),
            lambda: self.rope_scaling is None or self.positions == "rope",
            lambda: f"None with positions {self.positions!r}",
        )
        check.rule(
            ("position_offset", "positions"),
            lambda: self.position_offset == 0 or self.positions == "learned",
            lambda: f"0 with positions {self.positions!r}",
        )
        check.rule(
            ("hidden_size", "positions"),
            lambda: self.positions != "sinusoidal" or self.hidden_size % 2 == 0,
            lambda: "an even number with positions 'sinusoidal'",
        )
        if self.positions == "relative":
            # Half of an encoder's buckets are for keys on the right; half of the rest are exact.
            check.rule(
                ("relative_buckets", "num_encoder_layers"),
                lambda: self.num_encoder_layers == 0 or self.relative_buckets % 4 == 0,
                lambda: "a multiple of 4 where there is an encoder",
            )
            check.rule(
                ("relative_max_distance", "relative_buckets"),
                lambda: self.relative_max_distance > self.relative_buckets // 2,
                lambda: f"more than half of relative_buckets = {self.relative_buckets}",
            )
        check.rule(
            ("sliding_window", "num_decoder_layers"),
            lambda: self.sliding_window == 0 or self.num_decoder_layers > 0,
            lambda: "0 where num_decoder_layers is 0",
        )

    @property
    def kind(self) -> Kind:
        """Which stacks there are: "decoder", "encoder" or "encoder-decoder"."""
        if self.num_encoder_layers == 0:
            return "decoder"
        return "encoder-decoder" if self.num_decoder_layers else "encoder"

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """Build a named architecture, with some fields changed.

        Args:
            name: One of `PRESETS`, for example "gpt2", "gpt-nano", "llama-tiny", "t5-small".
            **overrides: Fields of `ModelConfig` that replace the preset's.

        Raises:
            ConfigError: for an unknown name or field, or a value that does not fit.

        Example:
            >>> ModelConfig.preset("gpt2").num_parameters()
            124439808
            >>> ModelConfig.preset("gpt-nano", num_decoder_layers=6).num_decoder_layers
            6
        """
        if name not in PRESETS:
            hint = did_you_mean(str(name), PRESETS) or f"; known: {', '.join(PRESETS)}"
            raise ConfigError(f"ModelConfig: unknown preset {name!r}{hint}")
        return cls.from_dict({**PRESETS[name], **scales_of(name, overrides), **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build a config from a mapping of field names, such as one read from JSON.

        Raises:
            ConfigError: for unknown keys (naming the nearest), missing ones, and bad values.

        Example:
            >>> config = ModelConfig.preset("gpt2")
            >>> ModelConfig.from_dict(config.to_dict()) == config
            True
        """
        return build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain JSON values, in the order they are declared.

        Example:
            >>> ModelConfig.preset("gpt2").to_dict()["num_heads"]
            12
        """
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed.

        Fields that hold their computed default follow the change, unless they are named too.

        Example:
            >>> config = ModelConfig.preset("gpt2").replace(hidden_size=1536)
            >>> config.head_dim, config.ffn_size
            (128, 6144)
        """
        follow = {
            name: None
            for name, (_, compute) in _COMPUTED.items()
            if getattr(self, name) == compute(self)
        }
        return self.from_dict({**self.to_dict(), **follow, **changes})

    def num_parameters(self) -> int:
        """Count the trainable numbers exactly, tied weights once.

        Example:
            >>> ModelConfig.preset("t5-small").num_parameters()
            60506624
        """
        from llmcore.parameters import parameter_shapes

        return sum(math.prod(shape) for shape in parameter_shapes(self).values())

    def flops_per_token(self, sequence_length: int) -> float:
        """Estimate the floating-point operations to train on one token, forward and backward.

        6 for each weight of a matrix product (2 forward, 4 backward), and 12 H D S for each
        attention over S keys: Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B. As
        there, causal attention counts in full, recomputation not at all. Tables that are only
        looked up do not count; the head does. With both stacks, one token of each, at equal
        lengths.

        Args:
            sequence_length: T, in tokens.

        Returns:
            Floating-point operations, a multiply-add being two.

        Example:
            >>> round(ModelConfig.preset("gpt2").flops_per_token(1024) / 1e6)
            854
        """
        from llmcore.parameters import parameter_shapes

        tables = ("embed.tokens.weight", "positions.weight", "types.weight", "relative_bias.weight")
        matrices = sum(
            math.prod(shape)
            for name, shape in parameter_shapes(self).items()
            if len(shape) == 2 and not name.endswith(tables)
        )
        if self.tie_embeddings:
            matrices += self.vocab_size * self.hidden_size
        keys = self.num_encoder_layers * sequence_length
        window = min(sequence_length, self.sliding_window or sequence_length)
        keys += self.num_decoder_layers * window
        if self.kind == "encoder-decoder":
            keys += self.num_decoder_layers * sequence_length
        return 6.0 * matrices + 12.0 * self.num_heads * self.head_dim * keys


#: The fields that hold one special token id, or None.
TOKEN_ID_FIELDS = (
    "bos_id",
    "eos_id",
    "pad_id",
    "decoder_start_id",
    "forced_bos_id",
    "forced_eos_id",
)

# The fields with a computed default: what they come from, and how.
_COMPUTED: dict[str, tuple[tuple[str, ...], Callable[[ModelConfig], Any]]] = {
    "num_kv_heads": (("num_heads",), lambda c: c.num_heads),
    "head_dim": (
        ("hidden_size", "num_heads"),
        lambda c: 0 if c.hidden_size % c.num_heads else c.hidden_size // c.num_heads,
    ),
    "ffn_size": (("hidden_size",), lambda c: 4 * c.hidden_size),
    "rotary_dim": (("head_dim",), lambda c: c.head_dim),
    "attention_scale": (("head_dim",), lambda c: 1.0 / math.sqrt(c.head_dim)),
    "norm_bias": (("norm",), lambda c: c.norm == "layer"),
}
