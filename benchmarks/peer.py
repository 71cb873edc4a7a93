"""The PyTorch peer: the model of a `ModelConfig` and its training step, as its users write them.

Packed q, k and v, scaled_dot_product_attention, logits of the scored rows alone, fused AdamW.
Parameters have llmcore's names, so both engines start from the same weights and are decoded and
evaluated by the same code afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmcore import ModelConfig
from llmcore.objectives import Batch

_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
# Parameters that are one matrix here and several names in llmcore.
_PACKED = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}


class Sublayer(nn.Module):
    """A branch with its norm, dropout and residual connection."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.residual_dropout)
        self.pre = c.norm_placement == "pre"

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        if self.pre:
            return x + self.dropout(self.branch(self.norm(x), *others))
        return self.norm(x + self.dropout(self.branch(x, *others)))


class Attention(Sublayer):
    """Over x itself, or over what the encoder made if there is any."""

    def __init__(self, c: ModelConfig, *, cross: bool = False) -> None:
        super().__init__(c)
        C = c.hidden_size
        self.heads, self.weights_dropout = c.num_heads, c.attention_dropout
        if cross:
            self.q, self.kv = nn.Linear(C, C), nn.Linear(C, 2 * C)
        else:
            self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def branch(self, x: Tensor, mask: Tensor | None, causal: bool, memory: Tensor | None) -> Tensor:
        if memory is None:
            q, k, v = self.split(self.qkv(x), 3)
        else:
            (q,), (k, v) = self.split(self.q(x), 1), self.split(self.kv(memory), 2)
        dropout = self.weights_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def split(self, x: Tensor, parts: int) -> Tensor:
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class FeedForward(Sublayer):
    """Two linear layers with an activation between."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__(c)
        self.up, self.down = (
            nn.Linear(c.hidden_size, c.ffn_size),
            nn.Linear(c.ffn_size, c.hidden_size),
        )
        self.activation = _ACTIVATIONS[c.activation]

    def branch(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Layer(nn.Module):
    """Self-attention, cross-attention in a decoder beside an encoder, feed-forward."""

    def __init__(self, c: ModelConfig, *, cross: bool) -> None:
        super().__init__()
        self.self_attention = Attention(c)
        self.cross_attention = Attention(c, cross=True) if cross else None
        self.feed_forward = FeedForward(c)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, memory: Tensor | None
    ) -> Tensor:
        # Padding stands at the end: causal attention needs no mask, nobody real sees it.
        x = self.self_attention(x, None if causal else mask, causal, None)
        if self.cross_attention is not None:
            x = self.cross_attention(x, mask, False, memory)
        return self.feed_forward(x)


class Stack(nn.Module):
    """Layers, and the norm at their end."""

    def __init__(self, c: ModelConfig, num_layers: int, *, cross: bool, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(c, cross=cross) for _ in range(num_layers))
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps) if c.final_norm else nn.Identity()
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask, self.causal, memory)
        return self.norm(x)


class Embedding(nn.Module):
    """Tokens and positions."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.scale = c.embedding_scale
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps) if c.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(c.embedding_dropout)
        if c.positions == "learned":
            self.positions = nn.Embedding(c.max_positions, c.hidden_size)
        else:
            self.register_buffer("sinusoids", sinusoids(c.max_positions, c.hidden_size), False)

    def forward(self, ids: Tensor) -> Tensor:
        table = self.positions.weight if hasattr(self, "positions") else self.sinusoids
        return self.dropout(self.norm(self.tokens(ids) * self.scale + table[: ids.shape[1]]))


class Head(nn.Module):
    """Logits from the token table: BERT's transform before it, a bias after it."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.transform = None
        if c.head_transform:
            self.transform = nn.Linear(c.hidden_size, c.hidden_size)
            self.transform.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size)) if c.head_bias else None
        self.activation = _ACTIVATIONS[c.activation]

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        if self.transform is not None:
            hidden = self.transform.norm(self.activation(self.transform(hidden)))
        return F.linear(hidden, table, self.bias)


class Peer(nn.Module):
    """An encoder or an encoder-decoder with layer norms, biases, a shared table and a tied head."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed, self.head = Embedding(c), Head(c)
        self.encoder = Stack(c, c.num_encoder_layers, cross=False, causal=False)
        self.decoder = None
        if c.num_decoder_layers:
            self.decoder = Stack(c, c.num_decoder_layers, cross=True, causal=True)

    def forward(
        self, enc_ids: Tensor, enc_mask: Tensor | None, dec_ids: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        hidden = self.encoder(self.embed(enc_ids), enc_mask)
        if self.decoder is not None:
            hidden = self.decoder(self.embed(dec_ids), enc_mask, hidden)
        hidden = hidden.flatten(0, 1)
        return self.head(hidden if rows is None else hidden[rows], self.embed.tokens.weight)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy llmcore's parameters in."""
        state = {}
        for name in self.state_dict():
            parts = [torch.tensor(np.asarray(arrays[part])) for part in llmcore_names(name)]
            state[name] = torch.cat(parts)
        self.load_state_dict(state)
        used = sum(len(llmcore_names(name)) for name in state)
        if used != len(arrays):
            raise SystemExit(f"the peer has {used} of the model's {len(arrays)} parameters")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters under llmcore's names."""
        return {
            part: values
            for name, weight in self.state_dict().items()
            for part, values in zip(
                llmcore_names(name),
                np.split(weight.numpy(), len(llmcore_names(name))),
                strict=True,
            )
        }


def llmcore_names(name: str) -> list[str]:
    """Return what llmcore calls a parameter, or the parts of a packed one."""
    prefix, layer, kind = ("." + name).rsplit(".", 2)
    return [f"{prefix}.{part}.{kind}"[1:] for part in _PACKED.get(layer, (layer,))]


def sinusoids(positions: int, width: int) -> Tensor:
    """Return sines, then cosines, [positions, width] (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class TorchTrainer:
    """The peer's training step, called as `common.LlmcoreTrainer` is."""

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
        compile: bool = False,
    ) -> None:
        self.model = Peer(config)
        self.model.load(arrays)
        self.forward = torch.compile(self.model, dynamic=True) if compile else self.model
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self.max_grad_norm = max_grad_norm

    def step(self, batch: Batch, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.forward(
            torch.from_numpy(batch.enc_ids),
            key_mask(batch),
            None if batch.dec_ids is None else torch.from_numpy(batch.dec_ids),
            None if batch.rows is None else torch.from_numpy(batch.rows),
        )
        targets = torch.from_numpy(batch.targets).long()
        return F.cross_entropy(logits, targets, label_smoothing=batch.label_smoothing)

    def arrays(self) -> dict[str, np.ndarray]:
        return self.model.arrays()


def key_mask(batch: Batch) -> Tensor | None:
    """Return which encoder positions are real, [B, 1, 1, S], or None if all are."""
    width = batch.enc_ids.shape[1]
    if batch.enc_lengths is None or (batch.enc_lengths == width).all():
        return None
    lengths = torch.from_numpy(batch.enc_lengths)
    return (torch.arange(width) < lengths[:, None])[:, None, None]
