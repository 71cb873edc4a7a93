"""Models: `Transformer`, and `TrainStep`, which trains one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError, ConfigError, DTypeError, ShapeError
from llmcore.objectives import Batch, as_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcore.generate import GenerationConfig
    from llmcore.score import ScoreResult
    from llmcore.tokenizer import Tokenizer


class Transformer:
    """A Transformer with its weights, on one device.

    Calls release the GIL; calls to one model from several threads take turns.

    Attributes:
        config: the architecture.
        tokenizer: turns text into ids where the model has one, or None.

    Args:
        config: the architecture, whole.
        device: "cpu", "cuda" or "cuda:<index>".
        dtype: "float32".
        seed: of the initial weights; the same seed gives the same weights.

    Raises:
        ConfigError: the config asks for what this version has no layer for.
        DeviceError: the device cannot be used, with the reason.
        OutOfMemory: the weights do not fit.

    Example:
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> model(np.array([[1, 2, 3]])).shape
        (1, 3, 65)
    """

    def __init__(
        self, config: ModelConfig, *, device: str = "cpu", dtype: str = "float32", seed: int = 0
    ) -> None:
        self._build(config, device, dtype, seed)

    def _build(self, config: ModelConfig, device: str, dtype: str, seed: int | None) -> None:
        if dtype != "float32":
            raise DTypeError(f"Transformer: dtype must be 'float32', got {dtype!r}")
        self.config = config
        self.device = device
        self.dtype = dtype
        self.tokenizer: Tokenizer | None = None
        self._core = _core.Transformer(config.to_dict(), device, seed)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], *, device: str = "cpu", dtype: str = "float32"
    ) -> Transformer:
        """Load a model in the Hugging Face layout.

        Args:
            path_or_repo: a directory with config.json and safetensors files, or, with the extra
                `hub`, the name of a repository on the Hugging Face Hub.
            device: as in `Transformer`.
            dtype: as in `Transformer`.

        Returns:
            The model, with its tokenizer if the directory holds one.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the architecture.

        Example:
            >>> import tempfile
            >>> model = Transformer(ModelConfig.preset("gpt-nano"))
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save_pretrained(directory)
            ...     again = Transformer.from_pretrained(directory)
            >>> again.config == model.config
            True
        """
        from llmcore import hf

        path = _local_directory(path_or_repo)
        model = cls.__new__(cls)
        model._build(hf.load_config(path), device, dtype, None)
        model._load(hf.load_state(path, model.config))
        model.tokenizer = _load_tokenizer(path)
        return model

    def _load(self, state: Any) -> None:
        parameters = self.parameters()
        for name, array in state:
            parameters[name].numpy()[...] = array

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, all or nothing.

        Args:
            path: the directory; made if absent, replaced whole if a model is there.

        Raises:
            CheckpointError: it could not be written; what was there before stays.
        """
        from llmcore import checkpoint

        arrays = {name: tensor.numpy() for name, tensor in self.parameters().items()}
        checkpoint.save(
            path, config=self.config, parameters=arrays, state=None, tokenizer=self.tokenizer
        )

    def parameters(self) -> dict[str, Tensor]:
        """Name to weight, float32, in the order of the flat buffer; they share its memory."""
        views: dict[str, Tensor] = self._core.parameters()
        return views

    def gradients(self) -> dict[str, Tensor]:
        """Name to gradient as the last `loss_and_grad` or training step left it."""
        views: dict[str, Tensor] = self._core.gradients()
        return views

    def __call__(self, ids: Any, lengths: Any | None = None) -> Tensor:
        """Logits of every position.

        Args:
            ids: [B, T] token ids.
            lengths: [B] real tokens of each row, or None: all. Logits of padding mean nothing.

        Returns:
            Tensor [B, T, V] float32.

        Raises:
            ShapeError: wrong shapes, or more tokens than positions.
            TokenIndexError: an id outside the vocabulary.
        """
        return self._forward(ids, lengths, hidden=False)

    def encode(self, ids: Any, lengths: Any | None = None) -> Tensor:
        """Hidden states after the last layer and norm, [B, T, C]. Arguments as for a call."""
        return self._forward(ids, lengths, hidden=True)

    def _forward(self, ids: Any, lengths: Any | None, *, hidden: bool) -> Tensor:
        array = as_ids(ids, "model: ids", ndim=2)
        counts = None if lengths is None else as_ids(lengths, "model: lengths", ndim=1)
        width = self.config.hidden_size if hidden else self.config.vocab_size
        out = _core.empty([*array.shape, width])
        self._core.forward(
            ids=_core.as_tensor(array),
            lengths=None if counts is None else _core.as_tensor(counts),
            out=out,
            hidden=hidden,
        )
        return out

    def loss(self, batch: Batch) -> float:
        """Mean loss over the batch's targets, by weight; dropout is off.

        Example:
            >>> from llmcore.objectives import CausalLM
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> round(model.loss(CausalLM()([[1, 2, 3, 4]])))  # ln(65) = 4.17, knowing nothing
            4
        """
        total, weight = self._core.loss(batch)
        return _mean(total, weight)

    def loss_and_grad(self, batch: Batch) -> float:
        """The same, with its gradients left in `gradients()`, replacing those before."""
        total, weight = self._core.loss_and_gradients(batch)
        return _mean(total, weight)

    def row_losses(self, batch: Batch) -> NDArray[np.float32]:
        """The loss of each target by itself, [R] float32, before weights."""
        out = _core.empty([batch.targets.size])
        self._core.row_losses(batch, out)
        losses: NDArray[np.float32] = out.numpy()
        return losses

    def generate(
        self, prompts: Any, config: GenerationConfig | None = None, *, stream: bool = False
    ) -> Any:
        """Continue prompts.

        Args:
            prompts: a text or a list of texts (with a tokenizer), a list of ids, or a list of lists
                of ids. They may differ in length; none changes what another becomes.
            config: how; greedy with 64 new tokens if None.
            stream: yield tokens as they come instead of returning the whole.

        Returns:
            A list of `GenerationResult`, one for each prompt; with `stream` an iterator of
            `GeneratedToken`, which can be closed at any time.

        Raises:
            ConfigError: settings that do not fit the model.
            DataError: a prompt without tokens.
            ShapeError: a prompt longer than the model's positions.
            TokenIndexError: an id outside the vocabulary.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> from llmcore import GenerationConfig
            >>> results = model.generate([[1, 2, 3], [4]], GenerationConfig(max_new_tokens=5))
            >>> [len(result.ids) for result in results]
            [5, 5]
        """
        from llmcore import generate as generation

        settings = config or generation.GenerationConfig()
        if stream:
            return generation.stream(self, prompts, settings)
        return generation.generate(self, prompts, settings)

    def score(self, texts: Any) -> list[ScoreResult]:
        """Log-probabilities and perplexity of texts under the model.

        Args:
            texts: as `prompts` of `generate`. The first token of each is context only. Texts longer
                than the model's positions are read in windows that overlap by half.

        Returns:
            One `ScoreResult` for each text.

        Raises:
            ConfigError, DataError, TokenIndexError: as `generate`.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> [result] = model.score([[1, 2, 3]])
            >>> len(result.logprobs), 60 < result.perplexity < 70
            (2, True)
        """
        from llmcore.score import score

        return score(self, texts)

    @property
    def recompute(self) -> bool:
        """Whether training keeps only each layer's input and runs the layer again for backward."""
        return bool(self._core.recompute)

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._core.recompute = value


@dataclass(frozen=True)
class StepResult:
    """What one training step did.

    Attributes:
        loss: mean over the targets of all micro-batches, before the update.
        grad_norm: global norm of the gradient, before clipping.
        targets: summed weight of the targets.
        skipped: the weights were left alone, since loss or norm was not finite or above its limit.
    """

    loss: float
    grad_norm: float
    targets: float
    skipped: bool


class TrainStep:
    """Forward, backward, clip and AdamW (Loshchilov and Hutter 2019), all in the core.

    Weight decay applies to matrices and tables, not to biases and norms. With several
    micro-batches the loss is the sum over all of them divided by the weight of all targets, so any
    split of a batch gives the same mean.

    Args:
        model: the model; its parameters are updated in place.
        lr: learning rate, unless `step` is given another.
        betas: decay rates of the moments.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled down to this global norm; None: never.
        dropout_seed: dropout masks are a function of this, the step and the place.

    Raises:
        ConfigError: a setting is out of range.

    Example:
        >>> from llmcore.objectives import CausalLM
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> step = TrainStep(model, lr=1e-2)
        >>> batch = CausalLM()([[1, 2, 3, 4]])
        >>> before, after = step(batch).loss, step(batch).loss
        >>> after < before
        True
    """

    def __init__(
        self,
        model: Transformer,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        dropout_seed: int = 0,
    ) -> None:
        _check_settings(lr, betas, eps, weight_decay, max_grad_norm)
        self.model = model
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self._core = _core.TrainStep(model._core, dropout_seed)

    def __call__(
        self,
        batch: Batch | Sequence[Batch],
        lr: float | None = None,
        *,
        max_loss: float = float("inf"),
        max_norm: float = float("inf"),
    ) -> StepResult:
        """Take one step on a batch or on a list of micro-batches.

        Args:
            batch: one Batch, or several to accumulate over.
            lr: learning rate of this step, if not the one given at construction.
            max_loss: the update is skipped if the loss is above this.
            max_norm: the update is skipped if the gradient norm is above this.

        Returns:
            What happened. A loss or norm that is not finite always skips the update.

        Raises:
            ConfigError: no target has a weight above zero.
        """
        batches = [batch] if isinstance(batch, Batch) else list(batch)
        if not batches:
            raise ConfigError("TrainStep: expected at least one batch, got none")
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return StepResult(
            *self._core.step(
                self.model._core,
                batches,
                lr=self.lr if lr is None else lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                max_grad_norm=limit,
                max_loss=max_loss,
                max_norm=max_norm,
            )
        )

    step = __call__

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on beside the weights.

        Returns:
            `m` and `v`, flat float32 views of the moments in the order of `parameters()`; `step`
            (updates so far), `calls` (steps so far, skipped ones included) and `dropout_seed`.
        """
        return {
            "m": self._core.m.numpy(),
            "v": self._core.v.numpy(),
            "step": self._core.updates,
            "calls": self._core.calls,
            "dropout_seed": self._core.dropout_seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ShapeError: the moments are those of another model.
        """
        for name in ("m", "v"):
            target = getattr(self._core, name).numpy()
            moment = np.asarray(state[name])
            if moment.shape != target.shape:
                raise ShapeError(
                    f"TrainStep.load_state_dict: {name} must have shape {list(target.shape)}, "
                    f"got {list(moment.shape)}: it belongs to another model"
                )
            target[...] = moment
        self._core.updates = int(state["step"])
        self._core.calls = int(state["calls"])
        self._core.dropout_seed = int(state["dropout_seed"])


def _mean(total: float, weight: float) -> float:
    if weight <= 0:
        raise ConfigError("model: the batch has no targets with a weight above zero")
    return total / weight


def _check_settings(
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float | None,
) -> None:
    problems = [
        f"{name} must be {meaning}, got {value}"
        for name, value, ok, meaning in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("betas", betas, all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
            ("eps", eps, eps > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("max_grad_norm", max_grad_norm, (max_grad_norm or 1) > 0, "above 0, or None"),
        )
        if not ok
    ]
    if problems:
        raise ConfigError.listing("TrainStep", problems)


def _local_directory(path_or_repo: str | os.PathLike[str]) -> Path:
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"from_pretrained: {path} is a file; give the directory that holds config.json"
        )
    name = str(path_or_repo)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"from_pretrained: there is no directory {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"from_pretrained: there is no directory {name}; to take it from the Hugging Face Hub, "
            "install the extra 'hub'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise CheckpointError(
            f"from_pretrained: there is no directory {name}, and the Hugging Face Hub could not "
            f"give it: {str(error).splitlines()[0]}"
        ) from error


def _load_tokenizer(path: Path) -> Tokenizer | None:
    from llmcore.tokenizer import Tokenizer

    if not any((path / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    return Tokenizer.load(path)
