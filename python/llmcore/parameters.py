"""The parameters of a model: names, shapes, their order in memory, and which are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcore.config import ModelConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """List every parameter with its shape, in the order in which the model lays them out.

    q, k and v (weights, then biases) are consecutive, so that they are one matrix
    [(H + 2 Hkv) D, C] to the GEMM; in cross-attention k and v are, which read the encoder's output;
    so are gate and up. Weights are [out, in], tables [rows, C].

    Example:
        >>> from llmcore import ModelConfig
        >>> shapes = parameter_shapes(ModelConfig.preset("gpt2"))
        >>> shapes["decoder.layers.0.self_attention.q.weight"]
        (768, 768)
    """
    c = config
    C, F = c.hidden_size, c.ffn_size
    query, key = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    both = c.kind == "encoder-decoder"
    shapes: dict[str, Shape] = {}

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (C,)
        if c.norm_bias:
            shapes[f"{name}.bias"] = (C,)

    def linears(prefix: str, widths: Mapping[str, Shape], bias: bool) -> None:
        for name, shape in widths.items():
            shapes[f"{prefix}.{name}.weight"] = shape
        for name, shape in widths.items():
            if bias:
                shapes[f"{prefix}.{name}.bias"] = shape[:1]
        if c.lora is None or prefix.startswith("head"):
            return
        adapted = {name: shape for name, shape in widths.items() if name in c.lora.targets}
        for name, shape in adapted.items():
            shapes[f"{prefix}.{name}.lora_a"] = (c.lora.rank, shape[1])
        for name, shape in adapted.items():
            shapes[f"{prefix}.{name}.lora_b"] = (shape[0], c.lora.rank)

    def attention(prefix: str) -> None:
        norm(f"{prefix}.norm")
        projections = {"q": (query, C), "k": (key, C), "v": (key, C)}
        if prefix.endswith("cross_attention"):
            linears(prefix, {"q": projections.pop("q")}, c.attention_bias)
        linears(prefix, projections, c.attention_bias)
        if c.qk_norm:
            shapes[f"{prefix}.q_norm.weight"] = shapes[f"{prefix}.k_norm.weight"] = (c.head_dim,)
        linears(prefix, {"out": (C, query)}, c.attention_out_bias)

    def feed_forward(prefix: str) -> None:
        norm(f"{prefix}.norm")
        inner = {"gate": (F, C), "up": (F, C)} if c.gated_ffn else {"up": (F, C)}
        linears(prefix, inner, c.ffn_bias)
        linears(prefix, {"down": (C, F)}, c.ffn_bias)

    def embedding_extras(prefix: str, norm_name: str) -> None:
        """The tables that encoder and decoder do not share."""
        if c.positions == "learned":
            shapes[f"{prefix}.positions.weight"] = (c.max_positions + c.position_offset, C)
        if c.type_vocab_size and prefix != "decoder":
            shapes[f"{prefix}.types.weight"] = (c.type_vocab_size, C)
        if c.embedding_norm:
            norm(f"{prefix}.{norm_name}")

    def stack(name: str, num_layers: int, cross: bool) -> None:
        if num_layers == 0:
            return
        if both:
            embedding_extras(name, "embedding_norm")
        if c.positions == "relative":
            shapes[f"{name}.relative_bias.weight"] = (c.relative_buckets, c.num_heads)
        for i in range(num_layers):
            attention(f"{name}.layers.{i}.self_attention")
            if cross:
                attention(f"{name}.layers.{i}.cross_attention")
            feed_forward(f"{name}.layers.{i}.feed_forward")
        if c.final_norm:
            norm(f"{name}.norm")

    shapes["embed.tokens.weight"] = (c.vocab_size, C)
    if not both:
        embedding_extras("embed", "norm")
    stack("encoder", c.num_encoder_layers, cross=False)
    stack("decoder", c.num_decoder_layers, cross=both)
    if not c.tie_embeddings:
        shapes["head.weight"] = (c.vocab_size, C)
    if c.head_bias:
        shapes["head.bias"] = (c.vocab_size,)
    if c.head_transform:
        linears("head", {"transform": (C, C)}, bias=True)
        norm("head.transform.norm")
    if c.pooler:
        shapes["pooler.weight"], shapes["pooler.bias"] = (C, C), (C,)
    if c.num_labels:
        shapes["classifier.weight"], shapes["classifier.bias"] = (c.num_labels, C), (c.num_labels,)
    return shapes


def is_trained(config: ModelConfig, name: str) -> bool:
    """Whether a parameter is trained unless told otherwise: with adapters they and the classifier.

    Example:
        >>> from llmcore import LoraConfig, ModelConfig
        >>> config = ModelConfig.preset("gpt-nano", lora=LoraConfig(rank=2))
        >>> is_trained(config, "embed.tokens.weight")
        False
    """
    task = ("classifier.", "pooler.")
    return config.lora is None or name.endswith((".lora_a", ".lora_b")) or name.startswith(task)
